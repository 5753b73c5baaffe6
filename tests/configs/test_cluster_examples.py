"""The examples of configs/cluster: what they say to Ray, to SLURM and to this project is what these understand."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from configs.load import load_config
from pipeline.tokenizers.codecs import CodecConfig
from tokenize_jobs.plan import TokenizeConfig
from tokenize_jobs.submit import RUNTIME_ENV, split_command

FOLDER = Path("configs/cluster")
REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / FOLDER).iterdir())
LAUNCHERS = ("aws.yaml", "on-premise.yaml")
SET_WORD = re.compile(r"--set[ =]('[^']+'|\"[^\"]+\"|[^\s\"'`]+)")


@pytest.fixture(autouse=True)
def in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository)


def example(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def job_config() -> TokenizeConfig:
    return load_config(FOLDER / "laion2b.toml", TokenizeConfig)


def rayjob() -> dict[str, Any]:
    return example("kuberay.yaml")["spec"]


def worker_groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in rayjob()["rayClusterSpec"]["workerGroupSpecs"]}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_s_own_schema_accepts_the_launcher_files(name: str):
    """Prepared and checked as ``ray up`` does it, without asking a cloud."""
    prepared = prepare_config(example(name))
    validate_config(prepared)
    assert prepared["available_node_types"]


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.suffix == ".toml"], ids=lambda path: path.name)
def test_every_config_of_the_folder_is_valid(path: Path):
    kind = CodecConfig if path.name == "seed2.toml" else TokenizeConfig
    assert load_config(path, kind)


def test_the_job_s_config_places_both_stages_on_nodes_that_exist():
    """Decoding fits on CPU nodes only, encoding on GPU nodes only, on every kind of cluster."""
    cluster = job_config().cluster
    types = example("aws.yaml")["available_node_types"]
    decode, encode, head = (types[name]["resources"] for name in ("decode", "encode", "head"))
    assert cluster.decode_resources
    for name, amount in cluster.decode_resources.items():
        assert decode[name] >= amount
        assert decode[name] == decode["CPU"], "one for each core"
        assert name not in encode
        assert name not in head
    assert encode["GPU"] >= cluster.encode_gpus > 0
    assert encode["CPU"] >= cluster.encode_cpus / cluster.encode_gpus * encode["GPU"]
    assert "GPU" not in decode
    assert head["CPU"] == 0


def test_only_the_head_is_not_on_spot_capacity():
    types = example("aws.yaml")["available_node_types"]
    spot = {
        name: node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        for name, node in types.items()
    }
    assert spot == {"head": False, "decode": True, "encode": True}
    for name in ("decode", "encode"):
        assert 0 <= types[name]["min_workers"] < types[name]["max_workers"] <= example("aws.yaml")["max_workers"]


def test_kuberay_nodes_declare_what_the_config_asks_for():
    groups, cluster = worker_groups(), job_config().cluster
    # KubeRay hands the value to a shell, hence the quotes inside the quotes.
    (text,) = shlex.split(groups["decode"]["rayStartParams"]["resources"])
    declared = json.loads(text)
    cores = groups["decode"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    assert declared == {name: int(cores) for name in cluster.decode_resources}
    limits = groups["encode"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= cluster.encode_gpus > 0
    assert int(limits["cpu"]) >= cluster.encode_cpus
    assert not groups["encode"]["rayStartParams"]
    assert rayjob()["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_kuberay_groups_grow_and_may_stand_on_spot_nodes():
    assert rayjob()["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    for group in worker_groups().values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert "spot" in {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
    assert worker_groups()["encode"]["maxReplicas"] == job_config().cluster.max_encoders


def test_the_kuberay_entrypoint_is_a_command_of_ours_with_real_keys():
    words = shlex.split(rayjob()["entrypoint"])
    assert words[0] == "anygpt-tokenize"
    configs, overrides = split_command(words)
    (path,) = configs
    config = load_config(path, TokenizeConfig, overrides)
    assert str(config.output).startswith("s3://")
    assert config.cluster.max_encoders == worker_groups()["encode"]["maxReplicas"]


def test_both_ways_of_submission_set_the_same_environment():
    inner = yaml.safe_load(rayjob()["runtimeEnvYAML"])
    outer = example("runtime_env.yaml")
    assert inner["env_vars"] == outer["env_vars"]
    assert outer["env_vars"]["OMP_NUM_THREADS"] == "1"
    assert outer["env_vars"]["RAY_USAGE_STATS_ENABLED"] == "0"
    RuntimeEnv(**inner)
    assert FOLDER / "runtime_env.yaml" == RUNTIME_ENV


def test_what_a_job_takes_along_is_small_and_has_every_config():
    """Whatever git tracks and the patterns let through: the code and configs, a megabyte or two."""
    environment = example("runtime_env.yaml")
    patterns = [pattern.strip("/") for pattern in environment["excludes"]]
    listing = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    tracked = [Path(name) for name in listing.stdout.split("\0") if name]
    travels = [path for path in tracked if path.is_file() and path.parts[0] not in patterns]
    assert sum(path.stat().st_size for path in travels) < 5_000_000
    assert Path("configs/corpora/laion2b.toml") in travels
    assert Path("tokenize_jobs/stages.py") in travels
    assert {"data", "runs", ".venv"} <= set(patterns)


def test_the_slurm_script_is_bash():
    done = subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["slurm.sh", "train-slurm.sh"])
def test_a_slurm_script_without_a_config_says_how_it_is_called(name: str):
    done = subprocess.run(["bash", str(FOLDER / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


@pytest.mark.parametrize(
    "path",
    [
        # The script that trains is another command's; it has no --set.
        *(path for path in EXAMPLES if path.suffix != ".toml" and path.name != "train-slurm.sh"),
        Path("docs/cluster.md"),
    ],
    ids=lambda path: path.name,
)
def test_every_set_in_an_example_or_on_the_page_is_a_key(path: Path):
    """A word in a comment is copied as often as one in the code."""
    text = path.read_text(encoding="utf-8").replace("\n#", "\n")
    words = [word.strip("'\"") for word in SET_WORD.findall(text)]
    for word in words:
        load_config(FOLDER / "laion2b.toml", TokenizeConfig, [word])
    assert words or path.name in {"runtime_env.yaml"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_no_example_holds_a_secret_or_the_host_of_a_registry(path: Path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert not re.search(r"\b[\w-]+\.(?:io|dkr\.ecr|pkg\.dev|azurecr)\S*/\w+[\w./-]*:", text)
