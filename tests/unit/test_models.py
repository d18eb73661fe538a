"""The zoo has the published sizes and runs on tiny images; other people's networks are found, made and digested."""

import importlib
import importlib.util
import subprocess
import sys
import textwrap
import zipfile
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.config import validate
from edgekd.errors import ConfigError
from edgekd.models import ZOO, ModelSettings, build, check_name, code_digest, imports, load_factory, source_digest
from edgekd.models.facts import input_names, macs, parameter_count
from edgekd.models.source import _distributions, _version, places_of

# For 100 classes, as the distillation literature gives them (RepDistiller, arXiv:1910.10699); convnet is ours.
PARAMETERS = {
    "convnet": 30_196,
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv2": 1_355_528,
    "vit_tiny": 2_710_564,
}
HERE = Path()


@pytest.fixture
def folder(tmp_path):
    """A folder for a user's code."""
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def refusal(call, *args) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    error = caught.value
    assert error.exit_code == 2
    assert error.hint
    assert "\n" not in error.message + error.hint
    return error


def test_importing_the_room_loads_no_torch():
    code = "import sys, edgekd.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_network_has_a_published_size():
    assert PARAMETERS.keys() == ZOO.keys()


@pytest.mark.parametrize("name", ZOO)
def test_parameters_for_100_classes(name):
    assert parameter_count(build(name, {"num_classes": 100}, HERE)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ZOO)
def test_runs_on_any_image_size(name):
    for image_size in (8, 9, 32):
        for in_channels in (1, 3):
            data = {"num_classes": 7, "in_channels": in_channels, "image_size": image_size}
            net = build(name, {}, HERE, data)
            assert net(torch.randn(2, in_channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"vit_tiny"}))  # whose positions belong to one size
def test_made_for_32_pixels_still_takes_8(name):
    assert build(name, {}, HERE)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", ZOO)
def test_last_maps_of_tiny_images_keep_two_pixels(name):
    net = build(name, {"image_size": [8, 12]}, HERE).eval()
    sizes = []
    net.pool.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[2:]))
    net(torch.randn(1, 3, 8, 12))
    assert min(sizes[0]) >= 2


@pytest.mark.parametrize(("size", "tokens"), [(32, 64), (28, 196), (8, 64), ((16, 32), 128)])
def test_a_transformer_takes_any_size_that_its_patches_fill(size, tokens):
    net = build("vit_tiny", {"depth": 1}, HERE, {"num_classes": 5, "in_channels": 3, "image_size": size}).eval()
    height, width = (size, size) if isinstance(size, int) else size
    assert net.embed.positions.shape[1] == tokens
    assert net(torch.randn(2, 3, height, width)).shape == (2, 5)
    with pytest.raises(ConfigError, match="do not fill"):
        build("vit_tiny", {"patch": 5, "image_size": 32}, HERE)


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"vit_tiny"}))
def test_layers_are_tappable_and_nothing_is_in_place(name):
    net = build(name, {}, HERE)
    assert {"layer1", "layer2", "layer3"} <= dict(net.named_children()).keys()
    assert not any(getattr(module, "inplace", False) for module in net.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_captured_with_an_open_batch(name):
    net = build(name, {"image_size": 8}, HERE).eval()
    batch = torch.export.Dim("N", min=1, max=4096)
    graph = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(graph(x), net(x))
    assert graph(x[:1]).shape == (1, 10)


def test_channel_shuffle_interleaves_the_halves():
    from edgekd.models.zoo.shufflenet import ChannelShuffle

    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert ChannelShuffle()(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_wider_and_deeper_convnet():
    net = build("convnet", {"width": 8, "depth": 5}, HERE)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [8, 8, 16, 16, 32]


def test_published_wide_shufflenets_run():
    for width in (0.5, 1.5, 2):
        assert build("shufflenetv2", {"width": width, "image_size": 8}, HERE)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


# names and settings


def test_unknown_name_is_answered_with_the_nearest():
    error = refusal(check_name, "resnt20")
    assert error.message == "unknown model 'resnt20'"
    assert "did you mean 'resnet20'?" in error.hint


@pytest.mark.parametrize("reference", [":f", "m:", "a:b:c", "a b:c", "../m:f", "m.py:", "a..b:c"])
def test_malformed_reference_is_refused(reference):
    assert "package.module:factory" in refusal(check_name, reference).hint


def test_settings_refuse_an_unknown_name_at_its_place():
    settings, problems = validate(ModelSettings, {"model": "resnt20"}, ("stages", 0))
    assert settings is None
    assert problems[0].location[-1] == "model"
    assert "unknown model 'resnt20'" in problems[0].message
    assert problems[0].hint.startswith("did you mean 'resnet20'?")


def test_settings_as_a_pipeline_file_gives_them():
    settings, problems = validate(ModelSettings, {"model": "shopnet:ShopNet", "args": {"width": 8}, "weights": "w.pt"})
    assert not problems
    assert settings.canonical() == {"model": "shopnet:ShopNet", "args": {"width": 8}, "weights": "w.pt", "inputs": None}


# other people's networks

SHOPNET = """
    '''A network.'''
    from torch import nn

    class ShopNet(nn.Module):
        def __init__(self, width=4, num_classes=10):
            super().__init__()
            self.head = nn.Linear(width, num_classes)

        def forward(self, x, mask=None):
            return self.head(x)

    def broken(width):
        return [][width]

    def number(**anything):
        return 3

    ready = nn.Linear(1, 1)
    WIDTH = 4
"""


def test_factory_beside_the_pipeline_file(folder):
    write(folder / "shopnet.py", SHOPNET)
    net = build("shopnet:ShopNet", {"width": 6}, folder, {"num_classes": 3, "in_channels": 1, "image_size": 8})
    assert (net.head.in_features, net.head.out_features) == (6, 3)
    assert input_names(net) == ("x", "mask")


def test_args_win_over_what_the_data_knows(folder):
    write(folder / "shopnet.py", SHOPNET)
    assert build("shopnet:ShopNet", {"num_classes": 5}, folder, {"num_classes": 3}).head.out_features == 5


def test_factory_in_a_package_and_dotted(folder):
    write(folder / "nets" / "__init__.py", "")
    write(
        folder / "nets" / "small.py",
        "from torch import nn\nclass Make:\n    one = staticmethod(lambda: nn.Linear(1, 1))",
    )
    assert isinstance(build("nets.small:Make.one", {}, folder), nn.Linear)


def test_two_folders_with_modules_of_one_name(folder):
    for width in (2, 3):
        write(
            folder / str(width) / "mine.py",
            "import helper\nfrom torch import nn\ndef f(): return nn.Linear(helper.W, 1)",
        )
        write(folder / str(width) / "helper.py", f"W = {width}")
    assert [build("mine:f", {}, folder / w).in_features for w in ("2", "3", "2")] == [2, 3, 2]


def test_module_that_is_not_there(folder):
    write(folder / "shopnet.py", SHOPNET)
    error = refusal(load_factory, "shopnt:ShopNet", folder)
    assert "there is no module 'shopnt'" in error.message
    assert error.hint == "did you mean 'shopnet'?"
    write(folder / "nets" / "__init__.py", "")
    write(folder / "nets" / "small.py", "")
    assert refusal(load_factory, "nets.smal:f", folder).hint == "did you mean 'nets.small'?"
    assert refusal(code_digest, "shopnt:ShopNet", folder).hint == "did you mean 'shopnet'?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nraise ValueError('no\\nluck')", "mine.py:2: ValueError: no"),
        ("import sys\nsys.exit(3)", "mine.py:2: SystemExit: 3"),
        ("def f(:\n", "mine.py:1: SyntaxError: "),
        ("import torch\n\ntorch.zeros('a')", "mine.py:3: TypeError: "),
        ("import no_such_library", "mine.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("assert False", "mine.py:1: AssertionError"),
    ],
)
def test_module_that_does_not_import(folder, text, said):
    write(folder / "mine.py", text)
    error = refusal(load_factory, "mine:f", folder)
    assert error.message.startswith(f"the module mine does not import: {said}")


def test_missing_library_is_told_apart_from_a_missing_module(folder):
    write(folder / "mine.py", "import no_such_library")
    assert "install" in refusal(load_factory, "mine:f", folder).hint


@pytest.mark.parametrize(
    ("attribute", "said", "hint"),
    [
        ("ShopNett", "has no 'ShopNett'", "did you mean 'ShopNet'?"),
        ("zzz", "has no 'zzz'", "known are: ShopNet, broken, number"),
        ("WIDTH", "is of type int", "a function"),
        ("ready", "is a network, not a factory", "function"),
    ],
)
def test_attribute_that_is_no_factory(folder, attribute, said, hint):
    write(folder / "shopnet.py", SHOPNET)
    error = refusal(load_factory, f"shopnet:{attribute}", folder)
    assert said in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("reference", "args", "said", "hint"),
    [
        (
            "shopnet:ShopNet",
            {"widht": 3},
            "takes no argument 'widht'",
            "did you mean 'width'?; known are: width, num_classes",
        ),
        ("shopnet:broken", {}, "needs the argument 'width'", "known are: width"),
        ("shopnet:broken", {"width": 3}, "(width=3) failed: shopnet.py:14: IndexError: list index", "args"),
        ("shopnet:ShopNet", {"width": "a"}, "shopnet.py:8: TypeError", "(width=4, num_classes=10)"),
        ("shopnet:number", {"a": 1}, "gave a value of type int, not a torch.nn.Module", "returns the network"),
        (
            "resnet20",
            {"depth": 3},
            "resnet20 takes no argument 'depth'",
            "known are: image_size, in_channels, num_classes",
        ),
        ("convnet", {"depth": 1}, "failed: ValueError: convnet needs a depth of at least 3", "width=16, depth=3"),
    ],
)
def test_network_that_cannot_be_made(folder, reference, args, said, hint):
    write(folder / "shopnet.py", SHOPNET)
    error = refusal(build, reference, args, folder)
    assert said in error.message
    assert hint in error.hint


# digests


def test_digest_of_a_zoo_name_is_the_name():
    assert code_digest("resnet20", HERE) == "resnet20"


def test_digest_sees_code_and_neither_comments_nor_docstrings(folder):
    path = write(folder / "shopnet.py", SHOPNET)
    before = code_digest("shopnet:ShopNet", folder)
    text = path.read_text().replace("'''A network.'''", "'''Another word.'''\n\n# a comment\n")
    path.write_text(text + "\n'a string that stands alone'\n")
    assert code_digest("shopnet:ShopNet", folder) == before
    path.write_text(text.replace("width=4", "width=5"))
    assert code_digest("shopnet:ShopNet", folder) != before


OTHER_CODE = """\
a = 1 | a = '1'
a = 1 | a = True
a = -1 | a = +1
a = b'' | a = ''
a = 1 | a: int = 1
f(a, b) | f(a)(b)
a = [1, 2] | a = [1], 2
a = ['x', None] | a = ['x None']
a = 'B' | a = B
a = f'{b}' | a = f'{b!r}'
f(a=1) | f(1)
f(*a) | f(a)
import a | import b
def f(a, /): pass | def f(a): pass
assert a | pass
"""


@pytest.mark.parametrize("pair", OTHER_CODE.splitlines())
def test_digest_tells_code_apart(folder, pair):
    one, _, other = pair.partition(" | ")
    found = []
    for text in (one, other, f"  # {other}\n{one.replace(' = ', '  =   ')}\n"):
        found.append(source_digest([write(folder / "some.py", text)]))
    assert found[0] == found[2] != found[1]


def test_digest_covers_the_whole_package_and_modules_beside_it(folder):
    write(folder / "nets" / "__init__.py", "")
    write(folder / "nets" / "deep" / "blocks.py", "A = 1")
    write(folder / "nets" / "small.py", "def f():\n    import layers\n")
    write(folder / "layers.py", "from more import A")
    write(folder / "more.py", "A = 1")
    write(folder / "unrelated.py", "A = 1")
    digests = [code_digest("nets.small:f", folder)]
    for name in ("nets/deep/blocks.py", "layers.py", "more.py"):
        write(folder / name, "A = 2")
        digests.append(code_digest("nets.small:f", folder))
        write(folder / name, {"layers.py": "from more import A"}.get(name, "A = 1"))
    assert len(set(digests)) == 4
    write(folder / "unrelated.py", "A = 2")
    assert code_digest("nets.small:f", folder) == digests[0]
    (folder / "nets" / "deep" / "blocks.py").rename(folder / "nets" / "deep" / "parts.py")
    assert code_digest("nets.small:f", folder) != digests[0]


def test_digest_follows_imports_to_other_folders_of_the_import_path(folder):
    write(folder / "here" / "mine.py", "def f():\n    from shared.layers import A\n")
    other = folder / "elsewhere"
    write(other / "shared" / "__init__.py", "")
    write(other / "shared" / "layers.py", "import deeper")
    write(other / "deeper.py", "A = 1")
    write(other / "unrelated.py", "A = 1")
    without = code_digest("mine:f", folder / "here")
    sys.path.append(str(other))
    digests = [without, code_digest("mine:f", folder / "here")]
    for name in ("shared/layers.py", "deeper.py"):
        (other / name).write_text((other / name).read_text() + "\nB = 2")
        digests.append(code_digest("mine:f", folder / "here"))
    assert len(set(digests)) == 4
    write(other / "unrelated.py", "A = 2")
    assert code_digest("mine:f", folder / "here") == digests[-1]
    other.rename(folder / "moved")
    sys.path[-1] = str(folder / "moved")
    assert code_digest("mine:f", folder / "here") == digests[-1], "where a folder lies does not count"


def test_digest_follows_what_python_would_import(folder):
    write(folder / "here" / "mine.py", "import layers\nimport statistics")
    write(folder / "here" / "statistics.py", "A = 1")  # hides the one of the standard library
    write(folder / "here" / "layers.py", "A = 1")
    write(folder / "elsewhere" / "layers.py", "A = 1")
    sys.path.append(str(folder / "elsewhere"))
    before = code_digest("mine:f", folder / "here")
    write(folder / "elsewhere" / "layers.py", "A = 2")  # hidden by the one beside mine.py
    assert code_digest("mine:f", folder / "here") == before
    write(folder / "here" / "statistics.py", "A = 2")
    assert code_digest("mine:f", folder / "here") != before


def install(site: Path, distribution: str, *files: str) -> Path:
    """What pip leaves of a distribution of pure Python."""
    for file in files:
        write(site / file, "")
    return write(site / f"{distribution}.dist-info" / "RECORD", "".join(f"{file},sha256=x,1\n" for file in files))


def test_digest_has_the_versions_of_the_libraries_that_are_imported(folder):
    site = folder / "site-packages"
    sys.path.append(str(site))
    write(folder / "mine.py", "import layers")
    write(folder / "layers.py", "def f():\n    import cv9.dnn\n    import six9\n    import json, numpy, torch, absent9")
    record = install(site, "opencv_nine-1.0", "cv9/__init__.py", "cv9/dnn.py")
    install(site, "six9-1.0", "six9.py")
    install(site, "unrelated-1.0", "unrelated.py", "six9more.py", "more/six9.py")

    def digest() -> str:
        _distributions.cache_clear()
        return code_digest("mine:f", folder)

    digests = [digest()]
    record.parent.rename(site / "opencv_nine-1.1.dist-info")
    digests.append(digest())
    (site / "six9-1.0.dist-info").rename(site / "six9-2.0.dist-info")
    digests.append(digest())
    (site / "unrelated-1.0.dist-info").rename(site / "unrelated-2.0.dist-info")
    assert digest() == digests[-1]
    (site / "six9-2.0.dist-info" / "RECORD").unlink()  # of no distribution: by its bytes
    digests.append(digest())
    write(site / "six9.py", "A = 2")
    digests.append(digest())
    assert len(set(digests)) == 5


def test_digest_takes_compiled_modules_and_archives_by_their_bytes(folder):
    write(folder / "mine.py", "import fast9\nimport zipped9")
    (folder / f"fast9{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF 1")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("zipped9/__init__.py", "A = 1")
    sys.path.append(str(folder / "archive.zip"))
    digests = [code_digest("mine:f", folder)]
    (folder / f"fast9{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF 2")
    digests.append(code_digest("mine:f", folder))
    with zipfile.ZipFile(folder / "archive.zip", "a") as archive:
        archive.writestr("zipped9/more.py", "A = 1")
    digests.append(code_digest("mine:f", folder))
    assert len(set(digests)) == 3


def test_version_of_a_library_is_the_one_that_metadata_gives():
    for name in ("sklearn", "PIL", "yaml", "pydantic"):
        spec = importlib.util.find_spec(name)
        if spec is not None:
            known = metadata.packages_distributions()[name]
            said = _version(name, places_of(spec)).lower().replace("_", "-")
            assert said == " ".join(sorted(f"{d}-{metadata.version(d)}".lower() for d in set(known)))


def test_digest_does_not_import_and_is_the_same_elsewhere(folder):
    text = "raise RuntimeError('imported')"
    write(folder / "a" / "mine.py", text)
    write(folder / "b" / "c" / "mine.py", text)
    (folder / "link").symlink_to(folder / "a")
    digests = {code_digest("mine:f", folder / place) for place in ("a", "b/c", "link")}
    assert len(digests) == 1
    assert "mine" not in sys.modules


def test_digest_of_an_installed_package_and_of_the_interpreter(folder):
    assert len(code_digest("safetensors.torch:save", folder)) == 64
    assert len(code_digest("sys:exit", folder)) == 64


def test_digest_of_invalid_python_names_the_line(folder):
    write(folder / "mine.py", "x = 1\ndef f(:\n")
    assert f"{folder / 'mine.py'}:2: not valid Python" in refusal(code_digest, "mine:f", folder).message
    (folder / "mine.py").write_bytes(b"x = '\0'")
    assert "not valid Python" in refusal(source_digest, [folder / "mine.py"]).message
    assert "cannot be read" in refusal(source_digest, [folder / "none.py"]).message


def test_source_digest_takes_files_and_folders_in_any_order(folder):
    a, b = write(folder / "p" / "a.py", "A = 1"), write(folder / "p" / "q" / "b.py", "B = 1")
    write(folder / "p" / "__pycache__" / "c.py", "")
    assert source_digest([folder / "p"]) == source_digest([b, a]) == source_digest([a, folder / "p" / "q", a])
    assert source_digest([a], root=folder) != source_digest([a])


# facts


def test_multiply_accumulates_of_known_networks():
    image = torch.randn(2, 3, 32, 32)
    assert macs(build("resnet20", {}, HERE), (image,)) == pytest.approx(40.8e6, rel=0.02)
    assert macs(nn.Conv2d(4, 8, 3, padding=1, groups=2), (torch.randn(5, 4, 6, 6),)) == 8 * 2 * 9 * 36
    assert macs(nn.ConvTranspose2d(4, 8, 2, stride=2), (torch.randn(5, 4, 3, 3),)) == 4 * 8 * 4 * 9
    assert macs(nn.Conv1d(2, 3, 3), (torch.randn(1, 2, 10),)) == 3 * 2 * 3 * 8
    assert macs(nn.Linear(7, 3), (torch.randn(4, 5, 7),)) == 5 * 21


def test_counting_leaves_the_network_as_it_was():
    net = build("resnet8", {}, HERE).train()
    net.layer1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    macs(net, (torch.randn(2, 3, 8, 8),))
    assert net.training
    assert not net.layer1[0].bn1.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_every_name_of_the_zoo_leads_to_a_function_of_that_name():
    for name, home in ZOO.items():
        module, _, function = home.partition(":")
        assert function == name
        assert callable(getattr(importlib.import_module(module), function))


def test_all_folders_that_were_searched_are_named(folder):
    (folder / "runs").mkdir()
    write(folder / "own" / "shopnet.py", SHOPNET)
    imports.search_beside(folder / "runs", folder / "own")
    error = refusal(load_factory, "shopnt:ShopNet", folder / "runs")
    assert error.message == f"there is no module 'shopnt' in {folder / 'own'} or on the import path"
    assert error.hint == "did you mean 'shopnet'?"
    write(folder / "runs" / "other.py", "")
    assert f"in {folder / 'runs'}, {folder / 'own'} or" in refusal(load_factory, "x:f", folder / "runs").message
    empty = refusal(load_factory, "nets.small:f", folder)
    assert empty.hint == f"put nets.py into {folder}, or install the package"
    write(folder / "nets" / "__init__.py", "")
    inside = refusal(load_factory, "nets.small:f", folder)
    assert inside.message == f"there is no module 'nets.small' in {folder / 'nets'}"
