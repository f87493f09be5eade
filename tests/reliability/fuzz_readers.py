"""Fuzzing of everything that reads a stranger's file: only XciteError, bounded time and memory.

    python tests/reliability/fuzz_readers.py --seconds 600            # all readers, one core
    python tests/reliability/fuzz_readers.py --reader tars --seconds 60

With atheris installed (`pip install atheris`; it is no dependency of anything) it chooses inputs by
the lines that they reach; otherwise hypothesis damages the seeds. Inputs that ended in anything but
an answer or an XciteError, that took longer than two seconds or more than a gibibyte, are kept
under --findings by the place of the failure.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

SECONDS = 2.0
MEMORY = 1 << 30
HERE = Path(__file__).resolve().parent


def pictures():
    from PIL import Image

    from xcite.data.decoding import decode

    seeds = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"):
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "TGA"):
            for options in ({}, {"exif": exif}, {"progressive": True}, {"compression": "tiff_lzw"}):
                file = io.BytesIO()
                image = Image.linear_gradient("L").resize((19, 13))
                with contextlib.suppress(Exception):
                    image.convert(mode).save(file, kind, **options)
                    seeds.append(file.getvalue())
    frames = [Image.new("RGB", (9, 7), (n, 0, 0)) for n in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"):
        file = io.BytesIO()
        with contextlib.suppress(Exception):
            frames[0].save(file, kind, save_all=True, append_images=frames[1:])
            seeds.append(file.getvalue())

    for kind, library in (("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")):
        file = io.BytesIO()
        with contextlib.suppress(Exception):  # only where xcite[formats] is installed
            plugin = importlib.import_module(library)
            if kind == "HEIF":
                plugin.register_heif_opener()
            image.convert("RGB").save(file, kind)
            seeds.append(file.getvalue())
    sys.path.insert(0, str(HERE.parent / "unit"))
    from tiffs import tiff

    pixels = np.arange(9 * 7 * 5).reshape(9, 7, 5)
    for form in (np.uint8, np.uint16, np.float32):
        for options in ({}, {"planar": True}, {"tile": 16}, {"deflate": True, "differences": True}):
            seeds += [tiff(pixels.astype(form), **options)]

    def read(data, place):
        # a training run's bound, lowered so that honest large pictures take no time here
        for channels in (3, 5):
            with contextlib.suppress(_error()):
                decode(data, channels=channels, max_pixels=4_000_000)

    return sorted(set(seeds)), read


def tars():
    from xcite.data.sources import open_source

    seeds = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for name in ("cat/1.png", "dog/" + "x" * 120 + ".png", "a" * 300 + "/ä.jpg"):
            file = io.BytesIO()
            with contextlib.suppress(ValueError):
                with tarfile.open(fileobj=file, mode="w", format=form) as archive:
                    member = tarfile.TarInfo(name)
                    member.size = 5
                    archive.addfile(member, io.BytesIO(b"abcde"))
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    archive.addfile(member)
                seeds.append(file.getvalue()[:4096])

    def read(data, place):
        path = place / "t.tar"
        path.write_bytes(data)
        source = open_source(path)
        for index in range(min(3, len(source))):
            source.read(index)

    return seeds, read


def zips():
    import zipfile

    from xcite.data.sources import open_source

    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        for names in (("cat/1.png", "dog/ä.png"), ("a/train/x/1.png", "a/val/x/2.png")):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", method) as archive:
                for name in names:
                    with archive.open(name, "w", force_zip64=len(names[0]) > 9) as member:
                        member.write(b"abcde" * 9)
            seeds.append(file.getvalue())

    def read(data, place):
        path = place / "z.zip"
        path.write_bytes(data)
        source = open_source(path)
        for index in range(min(3, len(source))):
            source.read(index)

    return seeds, read


def samples():
    from xcite.data.sources import open_source

    seeds = []
    for name, label in (("1.cls", b"3"), ("1.cls", b"cat"), ("1.json", b'{"label": 7, "x": [1]}')):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for member, data in (("1.jpg", b"abc"), (name, label)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        seeds.append(file.getvalue()[:2560])

    def read(data, place):
        path = place / "s.tar"
        path.write_bytes(data)
        source = open_source(path)
        source.read(len(source) - 1)

    return seeds, read


def parquets():
    import pyarrow as pa
    import pyarrow.parquet as pq

    from xcite.data.sources import open_source

    seeds = []
    for labels in ([0, 1, 1], ["cat", "dog", "cat"]):
        for packing in ("none", "snappy"):
            images = [{"bytes": b"abc", "path": f"{n}.png"} for n in range(3)]
            said = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
            table = pa.table({"image": images, "label": labels})
            table = table.replace_schema_metadata({"huggingface": json.dumps(said)})
            file = io.BytesIO()
            pq.write_table(table, file, compression=packing, row_group_size=2)
            seeds.append(file.getvalue())

    def read(data, place):
        path = place / "p.parquet"
        path.write_bytes(data)
        source = open_source(path)
        for index in range(min(3, len(source))):
            source.read(index)

    return seeds, read


def tables():
    from xcite.data.sources import open_source

    seeds = [
        b'image,label\n"a,1.png",cat\nb.png,dog\n',
        b"a.png;1\r\nb.png;2\r\n",
        "\ufefffilename\tclass\n猫.png\t猫\n".encode(),
        "image,label\na.png,1\n".encode("utf-16"),
        "猫.png,狗\n".encode("gbk"),
        b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n",
    ]

    def read(data, place):
        (place / "a.png").touch()
        path = place / "t.csv"
        path.write_bytes(data)
        for columns in (None, "image,label"):
            with contextlib.suppress(_error()):
                open_source(path, columns=columns)

    return seeds, read


def lists():
    from xcite.data.sources import open_source, read_class_names

    seeds = [b"a/1.png 0\nb c/2.png 1\n", b"/abs/x.png\t3\n../y.png 2\r\n", "ä ö 7\n\n".encode()]

    def read(data, place):
        (place / "a").mkdir(exist_ok=True)
        (place / "a" / "1.png").touch()
        path = place / "list.txt"
        path.write_bytes(data)
        for reader in (open_source, read_class_names):
            with contextlib.suppress(_error()):
                reader(path)

    return seeds, read


def recipes():
    import xcite
    from xcite.recipe import parse, shipped

    folder = Path(xcite.__file__).parent / "recipes"
    seeds = [(folder / f"{name}.yaml").read_bytes() for name in shipped()]
    seeds += [b"model: {name: regnety_160, wm: 1.5, depth: 3}", b"optim: {lr: 1e-3, betas: [0, 1]}"]

    def read(data, place):
        text = data.decode("utf-8", "replace")
        parse(text, "fuzz")
        parse("", "fuzz", [text[:200]])

    return seeds, read


def weights():
    import numpy as np

    sys.path.insert(0, str(HERE.parent / "golden"))
    from weight_mutations import damaged as wounded
    from weight_mutations import program
    from weight_mutations import seeds as whole

    from xcite.weights import open_weights
    from xcite.weights.inspection import inspect

    hub = Path(tempfile.mkdtemp(dir=_memory()))
    with tempfile.TemporaryDirectory() as folder:
        files = whole(Path(folder))
    (hub / "model.safetensors").write_bytes(files["xcit_timm.safetensors"])
    (hub / "model-00001-of-00001.safetensors").write_bytes(files["xcit_timm.safetensors"])
    config = {
        "architecture": "xcit_nano_12_p8_224",
        "label_names": ["a", "b"],
        "id2label": {"0": "a"},
    }
    config["pretrained_cfg"] = {
        "mean": [0.5],
        "std": [1],
        "input_size": [3, 32, 32],
        "crop_pct": 1.0,
    }
    processor = {
        "image_mean": [0.5],
        "size": {"shortest_edge": 256},
        "crop_size": 224,
        "resample": 3,
    }
    index = {"weight_map": {"cls_token": "model-00001-of-00001.safetensors"}}
    told = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")
    kinds = (".safetensors", ".pth", ".pdparams")
    seeds = [bytes([kinds.index(Path(n).suffix)]) + data for n, data in files.items()]
    texts = (config, processor, index)
    seeds += [bytes([3 + n]) + json.dumps(text).encode() for n, text in enumerate(texts)]
    seeds.append(b"\x06" + bytes(8))  # damaged from this number, see below
    all_files = list(files.values())

    def read(data, place):
        kind = data[0] % 7 if data else 1
        if kind == 6:  # wounds that know the containers: inside a zip's pickle, a header
            random = np.random.default_rng(list(data[1:9]))
            seed = all_files[int(random.integers(len(all_files)))]
            data = bytes([1]) + (
                program(random) if random.random() < 0.3 else wounded(seed, random, all_files)
            )
            kind = 1
        path = place / f"w{kinds[kind]}" if kind < 3 else hub / told[kind - 3]
        path.write_bytes(data[1:])
        source = hub / "model.safetensors" if kind in (3, 4) else path
        for reader in (inspect, open_weights):
            with contextlib.suppress(_error()):
                reader(source)
        path.unlink()

    return seeds, read


def bundles():
    sys.path.insert(0, str(HERE.parent / "unit"))
    from test_bundle import info

    from xcite.runtime.bundle import DESCRIPTION, BundleInfo, read_info, seal_folder

    folder = Path(tempfile.mkdtemp(dir=_memory()))
    (folder / "model.onnx").write_bytes(b"a graph")
    seal_folder(folder, info())
    seeds = [(folder / DESCRIPTION).read_bytes()]

    def read(data, place):
        path = folder / DESCRIPTION
        path.write_bytes(data)
        with contextlib.suppress(_error()):
            read_info(folder)
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
            fields = json.loads(data)  # sealed anew, as somebody with an own xcite would
            fields["seal"] = BundleInfo.model_validate(fields).digest()
            path.write_text(json.dumps(fields), encoding="utf-8", errors="surrogatepass")
            with contextlib.suppress(_error()):
                read_info(folder).built()

    return seeds, read


def caches():
    import numpy as np
    import safetensors.numpy

    from xcite.training.teachers import cache_files

    hashed = cache_files.digest({"a": 1})
    manifest = {"format": cache_files.FORMAT, "depends": {"a": 1}, "hash": hashed, "teacher": {}}
    seeds = [b"m" + json.dumps(manifest).encode()]
    present, ids = np.array([7], np.uint8), np.zeros((3, 2), np.uint16)
    hard = {"present": present, "classes": np.zeros(3, np.uint16)}
    soft = {
        "present": present,
        "top_classes": ids,
        "top_probabilities": ids.astype(np.float16),
        "rest": np.zeros(3, np.float16),
    }
    said = {"format": cache_files.FORMAT, "hash": hashed, "view": "0"}
    # without checksums, which would end every case at once
    seeds += [b"v" + safetensors.numpy.save(columns, said) for columns in (hard, soft)]

    def read(data, place):
        if data[:1] == b"m":
            (place / "manifest.json").write_bytes(data[1:])
            cache_files.read_manifest(place)
        else:
            cache_files.view_path(place, 0).write_bytes(data[1:])
            cache_files.read_view(place, 0, hashed, 10)

    return seeds, read


def runs():
    import numpy as np

    from xcite import recipe
    from xcite.training import checkpoint
    from xcite.training.run_folder import RunFolder, read_metrics

    files = ("checkpoint.safetensors", "metrics.jsonl", "environment.json", "recipe.yaml")
    folder = Path(tempfile.mkdtemp(dir=_memory())) / "run"
    run = RunFolder.create(folder, recipe.Recipe())
    run.record({"kind": "step", "step": 1, "loss": 2.5})
    run.write_environment("torch")
    state = {"model.head.bias": np.zeros(3, np.float32)}
    checkpoint.save(run.checkpoint, state, checkpoint.Position())
    seeds = [bytes([n]) + (folder / name).read_bytes() for n, name in enumerate(files)]

    def read(data, place):
        name = files[data[0] % 4 if data else 0]
        (folder / name).write_bytes(data[1:])
        run = RunFolder.open(folder)
        if name == "checkpoint.safetensors":
            checkpoint.load(run.checkpoint)
        elif name == "metrics.jsonl":
            read_metrics(run.metrics)
        elif name == "recipe.yaml":
            recipe.load(str(folder))
        else:
            run.write_environment("torch")

    return seeds, read


READERS = {
    reader.__name__: reader
    for reader in (
        *(pictures, tars, zips, samples, parquets, lists, tables),
        *(recipes, weights, bundles, caches, runs),
    )
}


def _error():
    from xcite.errors import XciteError

    return XciteError


def _memory():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Trial:
    """Runs cases, counts them and keeps what went wrong, one input for each place."""

    def __init__(self, name, read, findings):
        self.name, self.read, self.findings = name, read, findings
        self.place = Path(tempfile.mkdtemp(dir=_memory()))
        self.cases, self.slowest, self.found = 0, 0.0, {}
        self.before = self.memory()

    @staticmethod
    def memory():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def __call__(self, data):
        self.cases += 1
        before, started = self.memory(), time.monotonic()
        try:
            self.read(bytes(data), self.place)
        except _error():
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "xcite" in f.filename]
            self.keep(data, f"{type(error).__name__} at {own[-1] if own else '?'}")
        seconds = time.monotonic() - started
        self.slowest = max(self.slowest, seconds)
        if seconds > SECONDS:
            self.keep(data, "slow")
        if self.memory() - before > MEMORY:
            self.keep(data, "memory")
        if self.cases % 200 == 0:
            self.write()

    def keep(self, data, what):
        self.found[what] = self.found.get(what, 0) + 1
        if self.found[what] == 1:
            self.findings.mkdir(parents=True, exist_ok=True)
            code = hashlib.sha256(bytes(data)).hexdigest()[:12]
            (self.findings / f"{self.name}-{code}").write_bytes(bytes(data))
            (self.findings / f"{self.name}-{code}.txt").write_text(
                f"{what}\n{traceback.format_exc()}", errors="backslashreplace"
            )

    def write(self):
        self.findings.mkdir(parents=True, exist_ok=True)
        (self.findings / f"{self.name}.json").write_text(
            json.dumps(
                {
                    "cases": self.cases,
                    "slowest_seconds": round(self.slowest, 3),
                    "memory_growth_mib": (self.memory() - self.before) >> 20,
                    "found": self.found,
                }
            )
        )


def guided(seeds, trial, seconds):
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds):
        (corpus / f"{number:04}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-max_len=8192", "-rss_limit_mb=0", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", str(corpus)], trial)
    atheris.Fuzz()


def damaged(seeds, trial, seconds):
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    wound = st.tuples(st.integers(0, 1 << 16), st.sampled_from("sdir"), st.binary(max_size=8))
    end = time.monotonic() + seconds

    @settings(
        max_examples=1 << 30,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(seeds), st.lists(wound, min_size=1, max_size=6))
    def run(seed, wounds):
        data = bytearray(seed)
        for place, how, value in wounds:
            at = place % (len(data) + 1)
            if how == "d":
                del data[at : at + 1 + place % 64]
            elif how == "i":
                data[at:at] = value
            elif how == "r":
                data[at:at] = data[at : at + 64] * (place % 50)
            else:
                data[at : at + len(value)] = value
        trial(bytes(data))
        if time.monotonic() > end:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--hypothesis", action="store_true", help="even where atheris is there")
    chosen = parser.parse_args()
    with_atheris = atheris is not None and not chosen.hypothesis
    if chosen.reader is None:
        for name in READERS:
            command = [sys.executable, __file__, "--reader", name, "--findings", chosen.findings]
            command += ["--seconds", str(chosen.seconds // len(READERS))]
            subprocess.run(
                [*command, *(["--hypothesis"] if chosen.hypothesis else [])],
                stderr=subprocess.DEVNULL,
                check=False,
            )
            print(name, (chosen.findings / f"{name}.json").read_text(), flush=True)
        return
    warnings.simplefilter("ignore")
    watched = (
        atheris.instrument_imports(include=["xcite", "PIL", "tarfile"])
        if with_atheris
        else (contextlib.nullcontext())
    )
    with watched:
        seeds, read = READERS[chosen.reader]()
    trial = Trial(chosen.reader, read, chosen.findings)
    for seed in seeds:
        trial(seed)
    (guided if with_atheris else damaged)(seeds, trial, chosen.seconds)
    trial.write()


if __name__ == "__main__":
    main()
