"""The atlas: what the page computes and shows is what the library computes.

The browser tests drive a real Chromium and skip where there is none.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: F401  the Python lines of the page use it

import losslab
from losslab.atlas import examples, page, write_atlas
from losslab.atlas.distributions import thinned
from losslab.losses import explain
from losslab.losses.catalog import CATALOG
from losslab.metrics.odds import gradient_shares

SPECS = ["cross_entropy", "encouraging(log_end=0.333)", "0.5*focal + expectation"]


@pytest.fixture(scope="module")
def data():
    return page.atlas_data(SPECS)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_atlas(tmp_path_factory.mktemp("atlas") / "atlas.html", SPECS)


def test_every_loss_has_every_position(data):
    """Oracle: the catalogue and the product of the stops. Break: a row or a stop left out."""
    assert {e["name"] for e in data["losses"]} == {*CATALOG, SPECS[2]}
    for entry in data["losses"]:
        gridded = [c for c in entry["controls"] if c["input"] is None]
        positions = int(np.prod([len(c["stops"]) for c in gridded]))
        assert len(entry.get("grid") or entry["tables"]) == positions
        row = CATALOG.get(entry["name"])
        if row is not None and row.rows is None:
            assert "tables" not in entry, "a ψ of the catalogue that cannot be read"
        for control in entry["controls"]:
            assert control["start"] in control["stops"]
    parameters = {p.name for p in CATALOG["mixed"].parameters}
    shown = [c["name"] for e in data["losses"] if e["name"] == "mixed" for c in e["controls"]]
    assert sorted(shown) == sorted(parameters)


def test_values_beside_the_stops_get_a_stop(data):
    """Oracle: the spec. Break: a slider that moves the loss that was asked for to a neighbour."""
    entry = next(e for e in data["losses"] if e["name"] == "encouraging")
    stops = next(c["stops"] for c in entry["controls"] if c["name"] == "log_end")
    assert 0.333 in stops and stops == sorted(stops)


def test_the_page_loads_nothing(file):
    """Oracle: its text. Break: a script, style or font from elsewhere."""
    text = file.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "http://" not in text and "https://" not in text
    assert "{{" not in text and "/* scripts */" not in text


def test_many_log_odds_are_thinned_evenly():
    """Oracle: numpy's quantiles. Break: a tail cut off, infinities kept."""
    values = np.random.default_rng(0).normal(size=50_001).astype(np.float32)
    kept = thinned(np.append(values, [np.inf, np.nan]))
    assert len(kept) == 10_000
    shares = [0.01, 0.3, 0.99]
    np.testing.assert_allclose(np.quantile(kept, shares), np.quantile(values, shares), atol=2e-3)
    assert np.array_equal(thinned(np.array([3.0, -1.0, np.inf])), [-1.0, 3.0])


# ---- in a browser ----


@pytest.fixture
def window(browser, file):
    """Opens the page; any script error or request to elsewhere fails the test."""
    wrong, contexts = [], []

    def open_it(width=1300, height=900, scheme="light", at="", path=file):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        tab = context.new_page()
        tab.emulate_media(color_scheme=scheme)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        tab.on("request", lambda r: wrong.append(r.url) if r.url.startswith("http") else None)
        tab.goto(f"{path.as_uri()}{at}")
        tab.wait_for_selector("#reading td")
        return tab

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []


NUMBERS = """volume: found.volume, gradients: found.gradients, p: [...found.p.value],
  slope: [...found.p.slope]"""
CURVES = """([name, values]) => {
  const item = placed(entryFor(name, values), values), found = curvesOf(item);
  return {spec: specOf(item), python: pythonOf(item), NUMBERS};
}""".replace("NUMBERS", NUMBERS)


def settings(entry, count):
    """The corners of an entry's controls and some places between, as its sliders stop."""
    pick = random.Random(entry["title"])
    corners = [{c["name"]: c["stops"][k] for c in entry["controls"]} for k in (0, -1)]
    some = [{c["name"]: pick.choice(c["stops"]) for c in entry["controls"]} for _ in range(count)]
    start = {c["name"]: c["start"] for c in entry["controls"]}
    return [start, *corners, *some]


def test_the_page_computes_what_the_library_computes(window, data):
    """Oracle: autograd on losslab.loss(the page's own spec), in float64: losses, slopes, gradients,
    V. Break: a step or its slope wrong in JavaScript, the wrong position, a spec that says
    something else than the sliders."""
    tab = window()
    for entry in data["losses"]:
        for values in settings(entry, 12 if entry["controls"] else 0):
            found = tab.evaluate(CURVES, [entry["name"], values])
            check_curves(found, losslab.loss(found["spec"]))
            if "module" in entry:
                assert eval(found["python"]).spec == losslab.loss(found["spec"]).spec


def check_curves(found, loss):
    p = torch.arange(1, 1000, dtype=torch.float64) / 1000
    value, slope = explain.curves(loss, p)
    near = {"rtol": 1e-8, "atol": 1e-8}
    np.testing.assert_allclose(found["p"], value, err_msg=loss.spec, **near)
    # at a kink the page and autograd may take different sides
    off = np.abs(np.abs(found["slope"]) - slope.numpy()) > 1e-8 * (1 + slope.numpy())
    assert off.sum() <= 2, (loss.spec, p[off])
    for example, gradient in zip(examples.EXAMPLES, found["gradients"], strict=True):
        truth = examples.gradients(loss, example)
        np.testing.assert_allclose(gradient, truth, rtol=1e-7, atol=1e-9, err_msg=loss.spec)
    volume = explain.gradient_volume(loss)
    if volume is None or np.isinf(volume):
        assert found["volume"] is None or volume is not None
    else:
        assert found["volume"] == pytest.approx(volume, rel=2e-3, abs=1e-6), loss.spec


def table(tab, name="reading"):
    """A table's body as text: {row: cells}."""
    rows = tab.locator(f"#{name} tbody tr").all()
    return {r.locator("th").inner_text().strip(): r.locator("td").all_inner_texts() for r in rows}


def percents(cells):
    """The shares of a row of bands, without the first cell."""
    return [float(cell.split()[0]) for cell in cells[1:]]


def wait_for_row(tab, spec):
    """Until a row of the table of readings is called so."""
    tab.wait_for_function(
        "text => [...document.querySelectorAll('#reading tbody th')]"
        ".some(th => th.textContent.trim() === text)",
        arg=spec,
    )


def shown_number(text):
    return float(text.replace("−", "-"))


def test_a_slider_moved_by_keyboard(window):
    """Oracle: explain.curves at the p that is read. Break: a slider out of reach of the keyboard,
    numbers that stay behind."""
    tab = window(at="#focal%20%7C%20cross_entropy")
    tab.locator("[data-parameter=gamma]").focus()
    for _ in range(7):
        tab.keyboard.press("ArrowRight")
    tab.locator("#p").focus()
    for _ in range(30):
        tab.keyboard.press("ArrowLeft")
    wait_for_row(tab, "focal(gamma=2.7)")
    assert tab.locator("#at").inner_text() == "p = 0.670, a = 0.71"
    for spec, cells in table(tab).items():
        value, slope = explain.curves(losslab.loss(spec), torch.tensor([0.67]).double())
        assert shown_number(cells[0]) == pytest.approx(value.item(), rel=6e-4)
        assert shown_number(cells[1]) == pytest.approx(slope.item(), rel=6e-4)
    assert tab.locator("[data-parameter=gamma]").get_attribute("aria-valuetext") == "2.7"


REACHED = """[...document.querySelectorAll("button, input, select, summary, a")]
  .filter(e => e.checkVisibility() && !e.disabled)"""
UNNAMED = """[...document.querySelectorAll("input, select, button")]
  .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"""


def test_everything_can_be_reached_by_keyboard(window):
    """Oracle: the page's controls, counted. Break: one that Tab passes over, or without a name."""
    tab = window(at="#encouraging")
    for _ in range(tab.evaluate(f"{REACHED}.length") + 2):  # boxes that scroll take the focus too
        tab.keyboard.press("Tab")
        tab.evaluate("document.activeElement.dataset.reached = 1")
    missed = tab.evaluate(f"{REACHED}.filter(e => !e.dataset.reached).map(e => e.outerHTML)")
    assert missed == []
    assert tab.evaluate(UNNAMED) == 0


OWN = [
    "softplus(-a)",
    "-log(p) + 0.5*(1 - p)**2",
    "max(0, 1 - a)",
    "min(a, 2) * -1 + relu(1 - a)^2 / 4",
    "where(a < 1, 0.5 - a, (2 - a)**2 / 2)",
    "exp(-max(a, -3)) - -p**2 - 2*-a",
    "-(1 - p)**2 * log(p) + log(1 - p)",
    "log1p(exp(-a)) * (1 - sigmoid(a)) ** 1.5 - tanh(a) / (2 + cos(a)) + abs(a - 0.3)",
    "1 - (2 - (3 - a)) * pi / sqrt(e) + sin(0.5 + a) - logsigmoid(a) + expm1(min(a, 1))",
]


@pytest.mark.parametrize("formula", OWN)
def test_a_typed_psi(window, formula):
    """Oracle: the Python line that the page offers, run by the library. Break: precedence, a
    function or its slope, a line that means something else."""
    tab = window()
    tab.click("#own")
    tab.locator(".own input").fill(formula)
    wait_for_row(tab, f"ψ: {formula}")
    line = tab.locator(".card").last.locator("code.python").inner_text()
    loss = eval(line)
    assert isinstance(loss, losslab.OddsLoss)
    found = tab.evaluate(f"() => {{ const found = items.at(-1).curves; return {{{NUMBERS}}}; }}")
    check_curves(found, loss)


def test_a_typed_logarithm_of_p_is_exact(window):
    """Oracle: −a and −log σ(a) for large a. Break: a line that goes through p, whose gradient is
    NaN in float32 where p rounds to 0 or 1."""
    tab = window()
    lines = [tab.evaluate("text => parsed(text).python", f) for f in ("-log(p)", "-log(1 - p)")]
    assert lines == ["-F.logsigmoid(a)", "-F.logsigmoid(-a)"]
    for line, slope in zip(lines, (-1.0, 0.0), strict=True):
        a = torch.tensor([-200.0], requires_grad=True)
        eval(f"lambda a: {line}")(a).backward()
        assert a.grad.item() == pytest.approx(slope, abs=1e-30)


@pytest.mark.parametrize("condition", ["a", "0 < 1", "(a + 1)", "p * (a < 1)"])
def test_a_where_wants_a_comparison(window, condition):
    """Oracle: torch.where, which refuses the line too. Break: a curve whose Python line raises."""
    tab = window()
    for formula in (f"where({condition}, a, -a)", f"where({condition}, 1, 2) + a"):
        told = "text => { try { parsed(text); return ''; } catch (e) { return e.message; } }"
        assert "wants a comparison" in tab.evaluate(told, formula)


@pytest.mark.parametrize("formula", ["1/a", "log(a)", "1/(a - 1)", "sqrt(a)"])
def test_a_psi_with_holes_equals_nothing(window, formula):
    """Oracle: its values, which are not finite everywhere. Break: an identity that is claimed from
    the one point where it is infinite."""
    tab = window(at="#cross_entropy%20%7C%20exponential%20%7C%20hinge")
    tab.click("#own")
    tab.locator(".own input").fill(formula)
    wait_for_row(tab, f"ψ: {formula}")
    told = tab.locator(".card").last.locator(".relations").inner_text()
    assert told.startswith("Not finite at some a") and "=" not in told


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("1 +", "ends too early"),
        ("foo(a)", "Unknown function “foo”"),
        ("q", "Unknown name “q”"),
        ("3", "must depend on a"),
        ("min(a)", "min takes 2 arguments; got 1"),
        ("(a", "Expected “)” at the end"),
        ("a a", "Did not expect “a”"),
        ("a; alert(1)", "Cannot read “; alert(1)”"),
    ],
)  # fmt: skip
def test_a_formula_that_is_none(window, formula, message):
    """Oracle: the words. Break: an error that says nothing, a page that stops, text that is run."""
    tab = window()
    tab.click("#own")
    before = table(tab)
    tab.locator(".own input").fill(formula)
    assert message in tab.locator(".own .error").inner_text()
    assert len(table(tab)) == len(before)


RELATION = """([left, right]) => {
  const [x, y] = [left, right].map(s => placed(entryFor(s.name, s.values), s.values));
  return relation(curvesOf(x), curvesOf(y));
}"""


def test_identities_hold_on_the_page(window, data):
    """Oracle: the catalogue's identities, which tests/laws proves. Break: a relation not seen, or
    a wrong factor or constant."""
    tab = window()
    checked = 0
    for row in CATALOG.values():
        shown = next(e for e in data["losses"] if e["name"] == row.name)["identities"]
        for identity, sides in zip(row.identities, shown, strict=True):
            found = tab.evaluate(RELATION, [sides["left"], sides["right"]])
            assert found is not None, str(identity)
            assert found["factor"] == pytest.approx(identity.scale)
            offset = identity.offset + 2 * identity.offset_per_class  # shown on two classes
            assert found["offset"] == pytest.approx(offset, abs=1e-6), str(identity)
            checked += 1
    assert checked > 10
    strangers = [{"name": name, "values": {}} for name in ("focal", "hinge")]
    assert tab.evaluate(RELATION, strangers) is None


def test_show_both_sides_of_an_identity(window):
    """Oracle: the identity encouraging(rho=0) = cross_entropy. Break: the button does nothing."""
    tab = window(at="#encouraging")
    card = tab.locator(".card").first
    card.locator("summary").click()
    card.get_by_role("button", name="Show both").first.click()
    tab.wait_for_function("document.querySelectorAll('#reading tbody tr').length === 2")
    assert [*table(tab)] == ["encouraging(rho=0, log_end=0.75)", "cross_entropy"]
    assert (
        tab.locator(".card").last.locator(".relations").inner_text()
        == "= encouraging(rho=0, log_end=0.75)"
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_log_odds_of_a_run_from_a_file(window, tmp_path, save):
    """Oracle: metrics.gradient_shares on the same log-odds. Break: a file misread, an edge."""
    a = np.random.default_rng(1).normal(1, 3, size=3001).astype(np.float32)
    a[:3] = [0.0, np.log(9), -np.log(9)]
    path = tmp_path / ("run.npy" if save is np.save else "run.npz")
    if save is np.save:
        save(path, a)
    else:
        save(path, correct=a > 0, log_odds=a, margin=a)
    tab = window(at="#cross_entropy%20%7C%20focal%20%7C%20mean_squared_error")
    tab.set_input_files("#file", path)
    tab.wait_for_selector("#bands tbody tr")
    found = table(tab, "bands")
    for spec in ("cross_entropy", "focal"):
        shares = gradient_shares(torch.from_numpy(a), spec)
        np.testing.assert_allclose(percents(found[spec]), 100 * shares.shares, atol=0.0501)
        counts = 100 * shares.counts / len(a)
        np.testing.assert_allclose(percents(found["examples"]), counts, atol=0.0501)
    assert half_of_the_gradient(a) == pytest.approx(float(found["focal"][0].split()[0]), abs=0.06)
    assert "mean_squared_error" in tab.locator("#left").inner_text()


def half_of_the_gradient(a, spec="focal"):
    """The smallest percentage of examples that carries half of the gradient."""
    leaf = torch.from_numpy(a).double().requires_grad_()
    losslab.loss(spec).psi(leaf).sum().backward()
    pull = leaf.grad.abs().sort(descending=True).values
    return 100 * (int((pull.cumsum(0) < pull.sum() / 2).sum()) + 1) / len(a)


def test_a_file_that_holds_no_log_odds(window, tmp_path):
    """Oracle: the words. Break: a page that shows the last run as if it were this one."""
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "no.npz").write_text("nothing")
    tab = window()
    for name, words in (("other.npz", "holds no log_odds"), ("no.npz", "no .npz file")):
        tab.set_input_files("#file", tmp_path / name)
        tab.wait_for_function(
            "words => document.getElementById('file-error').textContent.includes(words)", arg=words
        )


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((-3, 12), "a, the log-odds of the true class"),
        ((-3, 90), "a, the log-odds of the true class; the last bar all above 40"),
        ((-90, 3), "a, the log-odds of the true class; the first bar holds all below −25"),
    ],
)
def test_bars_that_hold_more_say_so(window, tmp_path, ends, words):
    """Oracle: the words for these ends. Break: everything above 40 in a bar that seems to stand
    at 40."""
    np.savez(tmp_path / "run.npz", log_odds=np.linspace(*ends, 50).astype(np.float32))
    tab = window()
    tab.set_input_files("#file", tmp_path / "run.npz")
    tab.wait_for_selector("#histogram text.name")
    assert tab.locator("#histogram text.name").first.text_content().strip() == words


def test_a_comparison_in_the_page(command, browser, window, tmp_path):
    """Oracle: gradient_shares on the log-odds that the records hold, both seeds together. Break:
    seeds or losses mixed up."""
    compare = ["compare", "--task", "digits", "--seeds", 2, "--epochs", 2, "--out", "runs"]
    assert command(*compare, "--loss", "cross_entropy", "--loss", "focal")[0] == 0
    status, out, _ = command("atlas", "hinge", "expectation", "--run", "runs", "--out", "mine.html")
    assert status == 0 and "mine.html" in out
    tab = window(path=tmp_path / "mine.html")
    titles = tab.locator("#run option").all_inner_texts()
    assert titles == ["none", "runs: cross_entropy, 2 seeds", "runs: focal, 2 seeds"]
    tab.select_option("#run", "1")
    tab.wait_for_function("document.querySelector('#bands caption').textContent.includes('focal')")
    files = [json.loads(path.read_text()) for path in (tmp_path / "runs/runs").glob("*.json")]
    focal = [f["run_id"] for f in files if f["loss"]["label"] == "focal"]
    a = [np.load(tmp_path / f"runs/runs/{run}.npz")["log_odds"] for run in focal]
    for spec in ("hinge", "expectation"):
        shares = gradient_shares(torch.from_numpy(np.concatenate(a)), spec).shares
        found = percents(table(tab, "bands")[spec])
        np.testing.assert_allclose(found, 100 * shares, atol=0.0501)


def test_the_address_keeps_what_is_shown(window):
    """Oracle: the same table after a reload. Break: settings lost, an own ψ lost."""
    tab = window(at="#mixed(alpha%3D0.5%2C%20beta%3D2)%20%7C%20encouraging(bonus_start%3D0.5)")
    tab.click("#own")
    tab.locator(".own input").fill("relu(2 - a)")
    tab.wait_for_timeout(200)
    before = table(tab)
    assert "mixed(alpha=0.5, beta=2)" in before and "ψ: relu(2 - a)" in before
    tab.reload()
    tab.wait_for_selector("#reading td")
    assert table(tab) == before


def test_the_python_line_is_copied(window, browser):
    """Oracle: the clipboard. Break: another line than the card's."""
    tab = window(at="#focal")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.get_by_role("button", name="Copy the Python line").click()
    tab.wait_for_timeout(1000)  # wait_for_function would eval, which the page bans
    assert tab.locator("#status").text_content().startswith("Copied")
    tab.bring_to_front()  # a page that is not in front may not read it
    for _ in range(50):
        text = tab.evaluate("navigator.clipboard.readText().catch(() => null)")
        if text is not None:
            break
        tab.wait_for_timeout(100)
    assert text == "losslab.FocalLoss()"


GROUND = """Math.max(...getComputedStyle(document.body).backgroundColor
  .match(/\\d+/g).slice(0, 3))"""


@pytest.mark.parametrize("width", [360, 768, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_desk_light_and_dark(window, width, scheme):
    """Oracle: the page's width, and the ground's brightness. Break: a page that scrolls sideways,
    a theme that does not follow the system or the button."""
    tab = window(width=width, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert (tab.evaluate(GROUND) > 128) == (scheme == "light")
    tab.click("#theme")
    assert (tab.evaluate(GROUND) > 128) == (scheme == "dark")
    if width == 360:
        tab.locator("[data-parameter]").last.scroll_into_view_if_needed()
        assert tab.locator("#pull").is_visible()


def test_a_spec_written_otherwise_is_shown(window, tmp_path):
    """Oracle: the canonical spec. Break: a sum without spaces that the page does not find."""
    path = write_atlas(tmp_path / "sum.html", ["hinge", "cross_entropy+.5*expectation"])
    assert [*table(window(path=path))] == ["hinge", "cross_entropy + 0.5*expectation"]


def test_the_pointer_chooses_p(window):
    """Oracle: the place of the axis's ends, 44 and 10 pixels inside. Break: a p that is not under
    the pointer."""
    tab = window()
    for chart in ("pull", "loss"):
        tab.locator(f"#{chart}").scroll_into_view_if_needed()
        box = tab.locator(f"#{chart}").evaluate("e => [e.getBoundingClientRect().x, e.clientWidth]")
        top = tab.locator(f"#{chart}").bounding_box()["y"]
        tab.mouse.move(box[0] + 44 + 0.25 * (box[1] - 54), top + 50)
        assert shown_number(tab.locator("#p").input_value()) == pytest.approx(250, abs=4)
        tab.mouse.move(0, 0)
        tab.locator("#p").fill("700")


def test_six_losses_at_most(window):
    """Oracle: the cards. Break: a seventh, without a colour of its own."""
    tab = window()
    for _ in range(3):
        tab.click("#add")
    assert tab.locator(".card").count() == 6 and tab.locator("#add").is_disabled()
    tab.click("#own")
    assert tab.locator(".card").count() == 6
    tab.get_by_role("button", name=re.compile("Remove loss 2")).click()
    assert tab.locator(".card").count() == 5 and not tab.locator("#add").is_disabled()


# ---- the command ----


def test_served_on_this_machine(tmp_path):
    """Oracle: the file, over HTTP. Break: another page, a server that Ctrl-C does not end."""
    arguments = [sys.executable, "-m", "losslab", "atlas", "hinge", "--serve", "--port", "0"]
    with subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as run:
        assert run.stdout.readline() == "Atlas: losslab-atlas.html\n"
        address = re.search(r"http://127\.0\.0\.1:\d+/", run.stdout.readline()).group()
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == (tmp_path / "losslab-atlas.html").read_bytes()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "etc/passwd")
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encouragin"], "Unknown loss"),
        (["--run", "nowhere"], "to be the folder of a comparison"),
        (["--out", "atlas.pdf"], "must end in .html"),
        (["hinge"] * 7, "six losses"),
        (["hinge", "mine.py:late"], "losslab explain mine.py:late"),
        (["hinge", "--serve", "--port", 99999999], "another with --port"),
    ],
)
def test_what_the_command_refuses(command, arguments, words):
    """Oracle: status 2 and the words. Break: a traceback."""
    status, _, err = command("atlas", *arguments)
    assert status == 2 and words in err
