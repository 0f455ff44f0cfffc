"""What a newcomer meets first: the two environments, the Makefile, the README."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import hcnn

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = {"help", "environment", "data", "reproduce", "figures", "sweep", "ablations", "headline", "speed", "test",
           "test-full", "nbval", "verify", "lab", "clean"}


def make(*arguments, folder=ROOT, **environment):
    """Run make with those variables; returns the completed process."""
    return subprocess.run(["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"MAKEFLAGS": ""} | environment)


def test_conda_and_pip_install_the_same_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pins = next(item["pip"] for item in conda if isinstance(item, dict))
    assert sorted(set(pins) - {"-e ."}) == sorted(PROJECT["optional-dependencies"]["reproduce"])
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", pin) for pin in set(pins) - {"-e ."})


def test_the_lock_pins_the_same_versions_names_a_checksum_for_each_and_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([a-z0-9-]+==[^ ]+)", lock, re.M)
    assert set(PROJECT["optional-dependencies"]["reproduce"]) <= set(pins)
    assert lock.count(" --hash=sha256:") >= len(pins) == len(re.findall(r"^[a-z0-9-]+==.*\\$", lock, re.M))
    assert "://" not in lock and "@" not in lock


@pytest.mark.parametrize("file", [".github/workflows/tests.yml", ".pre-commit-config.yaml",
                                  ".devcontainer/devcontainer.json", "Dockerfile"])
def test_every_file_and_make_target_that_a_workflow_names_exists(file):
    text = (ROOT / file).read_text()
    if not file.endswith("Dockerfile"):
        assert yaml.safe_load(text)  # JSON is YAML
    assert set(re.findall(r"make ([a-z-]+)", text)) <= TARGETS | {"git"}
    for name in re.findall(r"-r ([a-z.]+)|python -m (hcnn[a-z.]*)", text):
        assert any((ROOT / part).exists() for part in (name[0] or "-", name[1].replace(".", "/") + ".py"))


def test_every_base_dependency_is_a_range_that_is_pinned_for_reproduction():
    names = {re.match("[a-z-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    pinned = {pin.split("==")[0] for pin in PROJECT["optional-dependencies"]["reproduce"]}
    assert names <= pinned and not any("==" in requirement for requirement in PROJECT["dependencies"])


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == hcnn.__version__
    authors = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert authors == ["Jacobsen", "Oyallon", "Mallat", "Smeulders"]


def test_make_without_a_target_lists_every_target():
    assert set(re.findall(r"^  ([a-z-]+) ", make().stdout, re.M)) >= TARGETS


def test_every_make_command_of_the_readme_exists():
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M))
    assert named and {first or second for first, second in named} <= TARGETS


@pytest.mark.parametrize("file", ["README.md", "data/README.md"])
def test_every_local_link_leads_somewhere(file):
    path = ROOT / file
    links = re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.fixture
def copy(tmp_path):
    """A small repository with the Makefile, a stand-in for the environment's Python that records how it is called."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in ("pyproject.toml", "requirements.lock"):
        (tmp_path / file).write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("""#!/bin/sh
case "$*" in
*cuda*) echo ${GPU:-small} ;;
*"-m hcnn data"*) exit 1 ;;
*${FAILING:-}*) echo "RUN $*"; echo "RESULTS ${HCNN_RESULTS:-results}"; exit ${STATUS:-0} ;;
esac
""")
    python.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


@pytest.mark.parametrize("command, profile, said", [
    ("reproduce", "small", "RUN notebooks/execute.py --all --profile small --dataset cifar10,cifar100\n"),
    ("reproduce", "paper", "RUN notebooks/execute.py --all --profile paper "),
    ("reproduce PROFILE=small DATASET=digits", "paper", "--profile small --dataset digits\n"),
    ("sweep K=8,16 Q=9", "small", "--profile small --sweep dataset=cifar10 variant=hcnn seed=0 K=8,16 Q=9\n"),
    ("headline", "small", "RUN -m hcnn headline --max-seconds 3600\n"),
    ("headline SEEDS=0,1 DATASET=cifar10 FURTHER=1 WORKERS=2 MAX_SECONDS=", "small",
     "RUN -m hcnn headline --datasets cifar10 --seeds 0 1 --workers 2 --further\n"),
    ("headline PRESET=short SEEDS=1,2 VARIANTS=hcnn", "small",
     "RUN -m hcnn headline --preset short --variants hcnn --seeds 1 2 --max-seconds 3600\n")])
def test_make_passes_on_what_it_is_told_and_does_without_data(copy, command, profile, said):
    """profile: that of the machine, `paper` where there is a GPU."""
    done = make(*command.split(), folder=copy, GPU=profile)
    assert done.returncode == 0 and said in done.stdout


@pytest.mark.parametrize("target, status", [("reproduce", "1"), ("headline", "1"), ("nbval", "1"), ("sweep", "0")])
def test_make_fails_with_what_it_runs_and_without_the_sizes_of_a_sweep(copy, target, status):
    assert make(target, folder=copy, STATUS=status).returncode != 0


@pytest.mark.parametrize("failing", ["evaluate", "execute.py", "tables"])
def test_reproduce_fails_with_each_of_its_steps_even_by_a_make_without_shellflags(copy, failing):
    assert make("reproduce", ".SHELLFLAGS=-c", folder=copy, STATUS="1", FAILING=failing).returncode != 0


def test_an_unknown_data_set_is_refused_before_anything_runs(copy):
    done = make("reproduce", "DATASET=cifar10,cifr10", folder=copy)
    assert done.returncode != 0 and done.stdout == "" and "got cifr10" in done.stderr


def test_nbval_reads_the_stored_runs_and_writes_elsewhere(copy):
    done = make("nbval", folder=copy)
    elsewhere = Path(re.search(r"^RESULTS (.*)", done.stdout, re.M)[1])
    assert "--nbval-lax --nbval-current-env notebooks" in done.stdout and done.returncode == 0
    assert copy not in elsewhere.parents and elsewhere.is_absolute() and not elsewhere.exists()


def test_too_old_python_is_refused_and_leaves_no_environment(copy):
    shutil.rmtree(copy / ".venv")
    done = make("environment", "PYTHON=false", folder=copy)
    assert done.returncode != 0 and "Python 3.11 or newer is needed" in done.stdout
    assert not (copy / ".venv").exists()


def test_clean_removes_what_git_does_not_know_and_nothing_else(copy):
    known = ["results/notebooks/kept.ipynb", "results/tables/kept.csv", "results/figures/kept.png"]
    mine = ["data/cifar", "results/runs/mine/run.json", ".venv/bin/tool"]
    made = ["results/notebooks/made.ipynb", "results/tables/made.csv", "results/figures/made.png.tmp",
            "results/local/runs/run.json"]
    for path in map(copy.joinpath, known + mine + made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for arguments in (["init"], ["add", *known], ["commit", "-m", "t"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t", *arguments], cwd=copy, check=True,
                       capture_output=True)
    assert make("clean", folder=copy).returncode == 0
    assert [name for name in known + mine + made if (copy / name).exists()] == known + mine


def test_continuous_integration_calls_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\nmake test " in script.read_text() and "make test" in (ROOT / "README.md").read_text()


def test_a_wheel_holds_the_networks_that_load_knows_with_their_cards(tmp_path):
    built = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    code = ("import hcnn, torch; n = hcnn.load('cifar10-hcnn'); print(hcnn.__file__); print(n.folder); "
            "assert n.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0] in n.classes")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")})
    package, folder = done.stdout.splitlines()
    assert Path(package).is_relative_to(tmp_path) and Path(folder).is_relative_to(tmp_path)
    assert Path(folder).name == hcnn.load("cifar10-hcnn").folder.name
    card, run = (Path(folder) / "CARD.md").read_text(), hcnn.load("cifar10-hcnn").run
    assert f"{run['test_accuracy']:.2%}" in card and run["weights_sha256"] in card
    assert f"{run['epochs_done']} of {run['epochs']} epochs" in card


def test_a_bare_checkout_runs_what_the_readme_says_and_names_in_one_line_what_else_needs():
    def run(*arguments):
        absent = ("torchvision", "pandas", "matplotlib", "PIL", "seaborn", "sklearn", "scipy")
        code = (f"import runpy, sys; sys.modules.update(dict.fromkeys({absent})); sys.argv[1:] = {arguments}; "
                "runpy.run_module('hcnn', run_name='__main__', alter_sys=True)")
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert run("headline", "--max-seconds", "0").returncode == 0
    for command, needed in ((["tables", "--local"], "pandas"), (["data", "digits"], "scikit-learn")):
        done = run(*command)
        assert done.returncode == 1
        assert done.stderr == f"error: this needs {needed}, which is not installed: pip install {needed}\n"


def test_torch_hub_gives_the_trained_network_or_a_fresh_one_of_any_size():
    hub = partial(torch.hub.load, str(ROOT), "hcnn", source="local", trust_repo=True)
    assert hub(dataset="cifar100").run["name"] == hcnn.load("cifar100-hcnn").run["name"]
    fresh = hub(variant="hcnn-plus", pretrained=False, K=4, Q=2)
    assert isinstance(fresh, hcnn.HCNN) and (fresh.architecture.K, fresh.architecture.Q) == (4, 2)
    with pytest.raises(ValueError, match="K is that of the trained network"):
        hub(K=4)
