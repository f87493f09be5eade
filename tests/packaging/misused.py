"""Mistakes that mypy finds by Xcite's types; `test_types.py` counts them."""

import xcite

xcite.Predictor("bundle").predict("cat.jpg", on_error="skip")
xcite.Predictor("bundle").predict(3)
xcite.create_model("xcit_nano_12_p8", engine="torch", num_classes="ten")
xcite.weights.open_weight("x.pth")
xcite.recipe.OptimRecipe(epoch=3)
