"""The web UI of `jora serve` in Debian's Chromium: form, run, report, gate, one stage, a cancelled run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.orchestration.serving.small_project import ROOT, SmallProject, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 1_800_000  # milliseconds for a run; a busy machine takes many minutes
CLICK_PATIENCE = 120_000
TYPING = 1_000  # until the form has taken over what was typed
# Of the sample's run: all its data, and minutes in place of the whole training.
SHORT = (
    "phases.0.max_steps=10",
    "phases.1.max_steps=20",
    "evaluate.max_records=40",
    "evaluate.tables_max_records=20",
)
# Two questions after three steps of training: no model reaches it.
GATE = "gates=[{metric: qa.exact_match, at_least: 0.99}]"
NOT_MET = "gate not met, nothing is exported: qa.exact_match of phase1 is 0.000, below 0.99"
# A folder for new pictures of docs/images.
PICTURES = os.environ.get("JORA_SCREENSHOTS")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallProject]:
    with serving(tmp_path_factory.mktemp("browser") / "project") as found:
        yield found


@pytest.fixture
def page() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make install")
    with playwright.sync_playwright() as driver:
        # Without the sandbox, because containers often run as root.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 1000})
        view.set_default_timeout(CLICK_PATIENCE)
        yield view
        browser.close()


def picture(page: Any, name: str) -> None:
    """Take a picture for the documentation, if a folder is given."""
    if PICTURES:
        page.wait_for_timeout(3000)  # the page draws its graph a moment later
        page.screenshot(path=str(Path(PICTURES) / name))


def submit(project: SmallProject, page: Any) -> None:
    """Submit the form once, and open the page of the new run."""
    form, before = page.url, count_of_runs(project)
    for _ in range(10):
        # Prefect's form takes a click for the check of the last field where its message moves the button.
        page.get_by_role("button", name="Submit").click()
        # A busy machine takes long to make the run, and longer to show the next page.
        if wait_until(page, lambda: page.url != form or count_of_runs(project) > before, 20):
            break
    assert wait_until(page, lambda: page.url != form, CLICK_PATIENCE / 1000), "no run was made"
    assert count_of_runs(project) == before + 1
    # The page of the deployment lists its runs, the newest one first.
    page.locator("a[href*='/runs/flow-run/']").first.click()
    page.wait_for_url(re.compile(r"/runs/flow-run/"))
    # The address changes before the page does, and the old page lists other runs with their states.
    page.get_by_role("tab", name="Artifacts").wait_for()


def count_of_runs(project: SmallProject) -> int:
    """Return how many runs of the pipeline were submitted so far."""
    question = {"flows": {"name": {"any_": ["raft-pipeline"]}}}
    request = urllib.request.Request(
        f"{project.api_url}/flow_runs/count",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return int(answer.read())


def wait_until(page: Any, condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; return whether it came true in time."""
    for _ in range(int(seconds * 1000 / TYPING)):
        page.wait_for_timeout(TYPING)
        if condition():
            return True
    return False


def wait_for_state(page: Any, *states: str) -> None:
    """Wait until the page of a run shows one of the states."""
    page.get_by_text(re.compile(f"^({'|'.join(states)})$")).first.wait_for(timeout=PATIENCE)


def add_change(page: Any, text: str) -> None:
    page.get_by_role("button", name="Add item").click()
    fill_change(page, text)


def fill_change(page: Any, text: str) -> None:
    field = page.locator("textarea").last
    field.fill(text)
    # The form checks a field that loses the focus. Its message comes or goes, and moves the buttons below.
    field.blur()
    page.wait_for_timeout(TYPING)


def open_form(page: Any, project: SmallProject) -> None:
    page.goto(project.form)
    page.get_by_role("button", name="Add item").wait_for()


def run_by_the_form(project: SmallProject, page: Any, *changes: str) -> None:
    """Fill the form, see a wrong value refused at its field, correct it, submit, and wait for the end."""
    open_form(page, project)
    picture(page, "run-form.png")
    for change in changes:
        add_change(page, change)
    add_change(page, "seed=seven")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("'seed=<a whole number>' was expected", exact=True).wait_for()
    assert "/run" in page.url
    fill_change(page, "seed=7")
    submit(project, page)
    wait_for_state(page, "Completed")
    picture(page, "run-page.png")


def open_report(page: Any) -> None:
    """Look at the artifacts of the run on the page, and open its report by the link."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("05-evaluation").first.wait_for()
    shown = set(re.findall(r"\b0\d-[a-z-]+", page.inner_text("body")))
    assert {"00-report", "01-plan", "04-retrieval", "05-evaluation", "06-lineage"} <= shown
    assert {"02-progress-finetune-structure", "03-loss-finetune-structure"} <= shown
    picture(page, "run-artifacts.png")
    page.get_by_text("00-report").first.click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    link = page.get_by_role("link", name="Open the HTML report")
    address = link.get_attribute("href")
    page.goto(address)
    assert page.title() and "Evaluation" in page.inner_text("body")


def evaluate_again(project: SmallProject, page: Any, *changes: str) -> None:
    """Run only the evaluation by the form, forced."""
    open_form(page, project)
    page.get_by_text("all stages", exact=True).first.click()
    page.get_by_role("option", name="only evaluate").click()
    page.get_by_role("switch").first.click()  # force
    for change in changes:
        add_change(page, change)
    submit(project, page)
    wait_for_state(page, "Completed")
    # The page counts them a moment later.
    page.get_by_text(re.compile(r"^\s*1 Task run\s*$")).first.wait_for()


def cancel_in_training(project: SmallProject, page: Any) -> None:
    """Submit a run that would train for days, and cancel it on its page."""
    open_form(page, project)
    add_change(page, "phases.0.max_steps=1000000")
    submit(project, page)
    page.get_by_text(re.compile(r"step \d+/1000000")).first.wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("button", name="Cancel Flow Run").click()
    wait_for_state(page, "Cancelled")
    assert not list((project.folder / "runs" / ".tmp").glob("finetune-structure-*/metrics.jsonl"))


def jora(project: SmallProject, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder of a served project, as its user does in another terminal."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=project.folder,
        env={**os.environ, "PREFECT_HOME": str(project.folder / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE / 1000,
        check=False,
    )


def fail_at_a_gate(project: SmallProject, page: Any) -> None:
    """Submit a run whose gate is not met: the page of the run, the report and the terminal say one line."""
    runs = project.folder / "runs"
    exports = sorted(runs.glob("export/*"))
    open_form(page, project)
    add_change(page, GATE)
    submit(project, page)
    wait_for_state(page, "Failed")
    page.get_by_role("tab", name="Details").click()
    page.get_by_text(NOT_MET).first.wait_for()
    picture(page, "run-failed-gate.png")
    assert sorted(runs.glob("export/*")) == exports
    page.goto((runs / "report.html").as_uri())
    said = page.inner_text("body")
    assert "A gate is not met, so nothing was exported." in said
    assert NOT_MET.partition(": ")[2] in said
    again = jora(project, "run", "small.yaml", "--set", GATE)
    assert again.returncode == 1, again.stderr
    assert again.stderr.strip().splitlines()[-1].startswith(f"failed: {NOT_MET}")
    assert "Traceback" not in again.stderr
    assert sorted(runs.glob("export/*")) == exports


def test_a_gate_that_fails(project: SmallProject, page: Any) -> None:
    fail_at_a_gate(project, page)


def test_form_run_and_report(project: SmallProject, page: Any) -> None:
    open_form(page, project)
    # One screen: the form is not much taller than the window.
    assert page.evaluate("document.documentElement.scrollHeight") <= 1100
    run_by_the_form(project, page)
    open_report(page)


def test_only_evaluate_again(project: SmallProject, page: Any) -> None:
    evaluate_again(project, page, "seed=7")


def test_cancel_in_training(project: SmallProject, page: Any) -> None:
    cancel_in_training(project, page)


@pytest.mark.slow
def test_the_sample(tmp_path: Path, page: Any) -> None:
    """The same on the embedded sample, with fewer steps and questions than its recipe has."""
    sample, store = ROOT / "flows" / "configs" / "sample.yaml", tmp_path / "project" / "runs"
    with serving(tmp_path / "project", str(sample), "--set", f"store={store}") as project:
        run_by_the_form(project, page, *SHORT)
        open_report(page)
        evaluate_again(project, page, *SHORT, "seed=7")
        cancel_in_training(project, page)
