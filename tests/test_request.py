"""What is asked of an analysis in one line of text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losslab.analysis.analyse import ANALYSES, QUICK, Quantity, request
from losslab.analysis.request import Request, read_request
from losslab.errors import InputError

FIRST = {"ood": ("out",), "robustness": ("epsilons",), "margins": ()}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("margins", {}),
        ("margins()", {}),
        ("ood(fashion-mnist)", {"out": "fashion-mnist"}),
        ("ood(out=[fashion-mnist, noise], split=test)", {"out": ["fashion-mnist", "noise"],
                                                         "split": "test"}),
        ("robustness([0.1, 3e-1], examples=200)", {"epsilons": [0.1, 0.3], "examples": 200}),
        ('ood("my folder/x,y")', {"out": "my folder/x,y"}),
        ("robustness(box=[0, 1], exact=true)", {"box": [0, 1], "exact": True}),
        ('ood("1e3")', {"out": "1e3"}),
    ],
)  # fmt: skip
def test_options(text, options):
    """Oracle: written by hand. Break: a bare word with a hyphen or a number in a list misread."""
    asked = read_request(text, FIRST)
    assert asked.options == options
    assert read_request(str(asked), FIRST) == asked


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1).filter(
    lambda text: '"' not in text and "\\" not in text
)
numbers = st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9, allow_nan=False)
values = words | numbers | st.booleans() | st.lists(numbers, min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), values))
def test_written_requests_read_back(options):
    """Break: text that needs quotes written without, or digits of a number lost; a request that
    reads back as another would be measured again and never found."""
    asked = Request("ood", options)
    again = read_request(str(asked), FIRST)
    assert {k: list(v) if isinstance(v, list) else v for k, v in again.options.items()} == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margin", "Did you mean 'margins'"),
        ("ood(", r"Cannot read the analysis 'ood\('"),
        ("ood(a, b)", "Cannot read 'b'"),
        ("ood(out=1, out=2)", "once in"),
        ("ood([1)", r"Cannot read '\[1'"),
        ("", "Cannot read the analysis ''"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message):
        read_request(text, FIRST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margins(splitt=test)", "margins has no option 'splitt'. Did you mean 'split'"),
        ("dynamics(7)", "Cannot read '7'"),
        ("robustness(exampels=5)", "Did you mean 'examples'"),
    ],
)
def test_options_that_an_analysis_has_not(text, message):
    with pytest.raises(InputError, match=message):
        request(text)


def test_every_analysis_can_be_asked_for():
    """Break: a default that is missing, or a name in QUICK that there is not."""
    for name in (*ANALYSES, *QUICK):
        assert str(request(name)) == name


def test_the_longest_beginning_says_what_a_value_is():
    """Break: the parts of the Brier score, of which uncertainty is no merit, judged like it."""
    calibration = ANALYSES["calibration"]
    assert calibration.quantity("brier").better is False
    assert calibration.quantity("brier.uncertainty") == Quantity()
    assert calibration.quantity("scaled.ece").unit == "points"
    assert calibration.quantity("temperature") == Quantity()
    assert ANALYSES["ood"].quantity("fpr95.min_energy").better is False


def test_help_lists_every_analysis():
    """Oracle: the catalogue. Break: an analysis that is added and not told of."""
    from losslab.cli.analyse import analyse

    text = " ".join((analyse.__doc__ or "").split())
    for name, known in ANALYSES.items():
        assert f"{name} {known.about}" in text
