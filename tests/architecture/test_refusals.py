import pytest

from lmc.errors import UserError


@pytest.mark.parametrize(
    ("option", "shape", "settings", "message"),
    [
        ("vgg16", (1, 28, 28), {}, r"vgg16 needs images of at least 32 x 32 pixels, these are 28 x 28; choose another"),
        ("vgg11", (3, 64, 16), {}, r"vgg11 needs images .* these are 64 x 16"),
        ("tiny_ten", (1, 8, 8), {}, r"tiny_ten needs images of at least 9 x 9 pixels, these are 8 x 8; choose another"),
        ("resnet20", (3, 32, 32), {"depth": 21}, r"architecture\.depth=21: a ResNet has 6 n \+ 2 layers; give 8, 14"),
        ("resnet20", (3, 32, 32), {"depth": 2}, r"architecture\.depth"),
        ("resnet18", (3, 32, 32), {"depth": 20}, r"architecture\.depth=20: a ResNet has 8 n \+ 2 layers; give 10, 18"),
        ("resnet18", (3, 32, 32), {"channels": []}, r"architecture\.channels"),
        ("pre_resnet164", (3, 32, 32), {"depth": 110 - 1}, r"a PreResNet has 9 n \+ 2 layers; give 11, 20, 29"),
        ("wide_resnet28_10", (3, 32, 32), {"depth": 4}, r"a WideResNet has 6 n \+ 4 layers; give 10, 16, 22"),
        ("vgg16", (3, 32, 32), {"depth": 12}, r"architecture\.depth"),
        ("mlp", (3, 32, 32), {"width": -4}, r"architecture\.width"),
        ("mlp", (3, 32, 32), {"depth": 0}, r"architecture\.depth"),
        ("resnet20", (3, 32, 32), {"width": 0}, r"architecture\.width"),
        ("resnet20", (3, 32, 32), {"width": float("inf")}, r"architecture\.width"),
        ("resnet20", (3, 32, 32), {"norm": "batchnorm"}, r"architecture\.norm='batchnorm'"),
        ("resnet20", (3, 32, 32), {"widht": 2}, r"did you mean width\?"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_in_one_line(network, option, shape, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        network(option, shape, **settings)
    assert "\n" not in str(caught.value)


def test_the_smallest_images_are_accepted(network):
    assert network("vgg11", (3, 32, 32), width=0.1)
    assert network("tiny_ten", (1, 9, 9))
    assert network("resnet20", (1, 1, 1))
