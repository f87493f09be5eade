"""What honest programs pickle beside weights: known by name, never made, never called.

A checkpoint holds paths, devices, settings and callbacks of the program that wrote it. Each becomes
an `Inert` here: a name that swallows whatever the pickle does to it. A table says which names are
usual company; everything else still ends the reading. Nothing is imported, so the table decides
what is *tolerated*, not what may run: what it refuses are names that no honest checkpoint needs.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names that are tolerated exactly as they stand.
_NAMES = {
    "builtins": """set frozenset slice complex range bytearray object list dict int float bool str
        Ellipsis NotImplemented""",
    "__builtin__": """set frozenset slice complex xrange bytearray object list dict int long float
        bool str unicode Ellipsis NotImplemented""",
    "collections": "deque ChainMap UserDict UserList",
    "copyreg": "_reconstructor __newobj__ __newobj_ex__",
    "copy_reg": "_reconstructor __newobj__",
    "functools": "partial",
    "datetime": "date datetime time timedelta timezone tzinfo",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID SafeUUID",
    "enum": "Enum IntEnum StrEnum Flag IntFlag",
    "argparse": "Namespace",
    "types": "SimpleNamespace MappingProxyType NoneType",
    "random": "Random",
    "typing": "Any Dict List Optional Sequence Tuple Union",
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    ),
    "numpy": """generic number bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intp
        uintp longlong ulonglong float16 float32 float64 longdouble complex64 complex128 str_ bytes_
        object_ void datetime64 timedelta64 int_ float_""",
    "numpy.random": "RandomState Generator",
    "numpy.random.mtrand": "RandomState",
    "numpy.random._generator": "Generator",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._sfc64": "SFC64",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "torch": """device dtype layout memory_format Generator Tensor strided sparse_coo
        contiguous_format channels_last channels_last_3d preserve_format per_tensor_affine
        per_tensor_symmetric per_channel_affine per_channel_symmetric""",
    "torch.serialization": "_get_layout",
    "torch.storage": "TypedStorage UntypedStorage",
    "torch.torch_version": "TorchVersion",
    "torch._utils": """_rebuild_sparse_tensor _rebuild_sparse_csr_tensor _rebuild_nested_tensor
        _rebuild_qtensor _rebuild_meta_tensor_no_storage _rebuild_wrapper_subclass""",
    "easydict": "EasyDict",
    "addict": "Dict",
    "munch": "Munch",
}
_EXACT = {(module, name) for module, names in _NAMES.items() for name in names.split()}

# Packages of which any class is tolerated: what begins with a capital letter. Functions are not,
# because the modules of a package also hold what they imported.
_PACKAGES = _words(
    """
    torch.nn torch.optim torch.amp torch.cuda.amp torch.utils.data torch.distributed
    torch.ao torch.quantization torchvision.transforms torchvision.models torchmetrics
    pytorch_lightning lightning lightning_fabric lightning_utilities lightning_lite timm
    transformers accelerate huggingface_hub omegaconf yacs box addict ml_collections
    fvcore.common.config detectron2.config mmengine.config mmcv.utils.config
    paddle.optimizer ml_dtypes
    """
)

# A piece of a module's name that leads somewhere else, wherever it stands.
_ELSEWHERE = _words(
    """
    os posix nt posixpath ntpath sys subprocess commands builtins __builtin__ importlib imp
    pkgutil zipimport runpy code codeop socket ssl http urllib requests ftplib smtplib
    telnetlib shutil tempfile glob fileinput ctypes _ctypes cffi pickle _pickle cPickle dill
    cloudpickle joblib marshal shelve webbrowser operator _operator pty tty platform pdb bdb
    timeit profile cProfile trace pydoc doctest asyncio multiprocessing threading concurrent
    signal gc inspect numpy f2py hub jit package fx cpp_extension
    """
)
_CLASSES_THAT_RUN = _words(
    """
    Popen Unpickler Pickler InteractiveInterpreter InteractiveConsole SourceFileLoader
    SourcelessFileLoader ExtensionFileLoader FileFinder CDLL PyDLL Thread Process Pool Timer
    FileIO
    """
)
_MODULE = re.compile(r"[A-Za-z_]\w{0,63}(\.[A-Za-z_]\w{0,63}){0,11}", re.ASCII)
_CLASS = re.compile(r"_?[A-Z]\w{0,63}", re.ASCII)

_DATA_TYPES = _words(
    """
    float64 double float32 float float16 half bfloat16 int64 long int32 int int16 short int8
    uint8 uint16 uint32 uint64 bool complex32 complex64 complex128 cfloat cdouble chalf
    quint8 qint8 qint32 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz
    float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 bits8 bits16
    """
)


# What takes the place of a tensor, in words.
_NO_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (meta)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass",
}


class Inert:
    """An object of another program, or a class of its: only the name is kept.

    Equal to nothing but itself, so it may be a dictionary's key whatever it stands for.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def called(self, arguments: tuple[object, ...]) -> "Inert":
        """What a call or construction gives; the arguments are dropped."""
        first = arguments[0] if arguments else None
        if self.name.startswith(("copyreg.", "copy_reg.")) and isinstance(first, Inert):
            return Inert(first.name)
        return Inert(_NO_TENSORS.get(self.name, self.name))


def is_data_type(module: str, name: str) -> bool:
    """Whether it is one of PyTorch's number types, such as torch.float32."""
    return module == "torch" and name in _DATA_TYPES


def is_tolerated(module: str, name: str) -> bool:
    """Whether a pickle may mention this beside weights."""
    if (module, name) in _EXACT or is_data_type(module, name):
        return True
    pieces = module.split(".")
    packages = (".".join(pieces[:count]) for count in range(1, min(len(pieces), 3) + 1))
    return (
        not _PACKAGES.isdisjoint(packages)
        and _MODULE.fullmatch(module) is not None
        and _CLASS.fullmatch(name) is not None
        and name not in _CLASSES_THAT_RUN
        and _ELSEWHERE.isdisjoint(pieces)
    )
