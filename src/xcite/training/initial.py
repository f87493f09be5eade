"""Weights to start from: the model and the pixels they decide, the classifier they may keep."""

from dataclasses import fields
from typing import Any

import numpy as np

from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.preprocessing import Preprocessing, in_pixels
from xcite.recipe import Recipe
from xcite.recipe_sections import ModelRecipe
from xcite.runtime.classes import brief, same_in_order
from xcite.variants import ARCHITECTURES, architecture_name
from xcite.weights import open_weights
from xcite.weights.identification import Identified
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.opening import recognise_weights

# Settings of training: weights know nothing of them.
_DROPPING = {"drop_path", "drop_rate", "attn_drop_rate"}


def settle(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Let ``init.weights`` decide what the recipe leaves open: the model and the preprocessing.

    The model is open where the recipe sets nothing but drop rates in its model section; a recipe
    that was written by a run leaves nothing open.

    Returns:
        The recipe, complete, and what people should know.

    Raises:
        XciteError: weights that cannot be read or recognised.
    """
    asked = recipe.model.model_fields_set - _DROPPING
    pixels = recipe.preprocessing.model_fields_set
    if recipe.init.weights is None or (asked and pixels >= set(Preprocessing.model_fields)):
        return recipe, []
    found = recognise_weights(recipe.init.weights, dialect=recipe.init.dialect)
    update: dict[str, Any] = {}
    notes = []
    if not asked:
        update["model"], left_out = _model_of(found, recipe.model)
        notes.append(f"{recipe.init.weights} decides the model: {update['model'].name}")
        if left_out:
            notes.append(
                f"{found.architecture.with_article} has no {', '.join(left_out)}: left out"
            )
    contract = found.metadata.preprocessing
    if contract is not None:
        own = _open_pixels(contract, recipe.preprocessing)
        update["preprocessing"] = own
        if own != recipe.preprocessing:
            notes.append(
                f"{recipe.init.weights} decides the input: {in_pixels(own.size)} px, crop ratio "
                f"{own.crop_ratio:g}, mean {_numbers(own.mean)}, std {_numbers(own.std)}"
            )
    return recipe.model_copy(update=update), notes


def _open_pixels(contract: Preprocessing, own: Preprocessing) -> Preprocessing:
    """``own`` with all that it leaves open as the weights have it; mean and std go together."""
    asked = own.model_fields_set
    taken = {"size", "crop_ratio", "interpolation"} - asked
    if not asked & {"mean", "std"}:
        taken |= {"mean", "std"}
    values = {name: getattr(contract, name) for name in taken}
    return Preprocessing(**(own.model_dump() | values))


def _model_of(found: Identified, own: ModelRecipe) -> tuple[ModelRecipe, list[str]]:
    """The model section that builds an architecture, and settings of ``own`` that it lacks."""
    architecture, variant = found.architecture, found.metadata.variant
    known = {field.name for field in fields(architecture)}
    settable = [name for name in ModelRecipe.model_fields if name in known - _DROPPING]

    def differing(name: str) -> dict[str, Any]:
        values = {key: getattr(architecture, key) for key in settable}
        row = ARCHITECTURES[name]
        return {key: value for key, value in values.items() if value != getattr(row, key)}

    family = [key for key, row in ARCHITECTURES.items() if isinstance(row, type(architecture))]
    name = min(family, key=lambda key: len(differing(key)))
    if variant is not None and not differing(architecture_name(variant)):
        name = architecture_name(variant)
    rates = own.model_dump(include=_DROPPING, exclude_none=True)
    kept = {key: value for key, value in rates.items() if key in known}
    model = ModelRecipe.model_validate({"name": name, **differing(name), **kept})
    return model, sorted(set(rates) - set(kept))


def open_initial(
    recipe: Recipe, architecture: Architecture, class_names: list[str]
) -> tuple[Recipe, dict[str, np.ndarray], list[str]]:
    """Read ``init.weights`` for a model.

    Returns:
        The recipe with ``init.reset_head`` decided, canonical weights, and what people should know.

    Raises:
        XciteError: weights that do not fit, expect other pixels or know other classes.
    """
    assert recipe.init.weights is not None
    recipe, notes = _decide_head(recipe, architecture, class_names)
    init = recipe.init
    assert init.weights is not None
    assert init.reset_head != "auto"
    file = open_weights(
        init.weights,
        architecture=architecture,
        dialect=init.dialect,
        reset_head=init.reset_head,
        adapt_channels=init.adapt_channels,
    )
    contract = file.metadata.preprocessing
    if contract is None:
        notes.append(f"{init.weights} does not say which mean and std it was trained with")
    else:
        _check_contract(init.weights, contract, recipe.preprocessing)
        if contract.size != recipe.preprocessing.size:
            notes.append(
                f"{init.weights} was trained at {in_pixels(contract.size)} px, this run is at "
                f"{in_pixels(recipe.preprocessing.size)} px"
            )
    known = file.metadata.class_names
    if known is not None and not init.reset_head:
        if not same_in_order(known, class_names):
            raise XciteError(
                f"{init.weights} knows other classes ({brief(known, 8)}) than the data "
                f"({brief(class_names, 8)}); set init.reset_head=true for a new classifier"
            )
        if known != class_names:
            notes.append(
                f"{brief(class_names, 2)} are taken to be the classes of {init.weights} in this "
                f"order: {brief(known, 2)}; if they are not, set init.reset_head=true"
            )
    tensors = dict(file.tensors)
    if file.missing:
        drawn = initial_weights(architecture, recipe.run.seed)
        tensors |= {name: drawn[name] for name in file.missing}
        notes.append(f"the classifier is drawn anew for {len(class_names)} classes")
    return recipe, tensors, notes


def _decide_head(
    recipe: Recipe, architecture: Architecture, class_names: list[str]
) -> tuple[Recipe, list[str]]:
    """Replace ``init.reset_head: auto``: the head stays where it knows just these classes."""
    init = recipe.init
    if init.reset_head != "auto":
        return recipe, []
    assert init.weights is not None
    found = recognise_weights(init.weights, dialect=init.dialect)
    known = found.metadata.class_names
    imagenet = known is not None and known == imagenet_classes()
    imagenet = imagenet and same_in_order(known or [], class_names)
    same = found.architecture.num_classes == len(class_names) and (
        known == class_names or (imagenet and not class_names[0].isdecimal())
    )
    notes = [f"the classifier of {init.weights} is kept: it knows these classes"] if same else []
    return recipe.model_copy(update={"init": init.model_copy(update={"reset_head": not same})}), (
        notes
    )


def _check_contract(weights: str, contract: Preprocessing, own: Preprocessing) -> None:
    for key in ("mean", "std"):
        theirs, ours = getattr(contract, key), getattr(own, key)
        if len(theirs) == len(ours) and not np.allclose(theirs, ours, atol=1e-6):
            raise XciteError(
                f"preprocessing.{key} is {list(ours)}, but {weights} was trained with "
                f"{list(theirs)}; set preprocessing.{key} to that"
            )


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
