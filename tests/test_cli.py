"""The command line, and the whole job done by its robot."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.phantom import write_phantoms
from cli import _paired

ROOT = Path(__file__).parent.parent
Run = Callable[..., Any]


def test_conf_takes_monai_labels_two_words_and_an_equals_sign() -> None:
    assert _paired(["serve", "--conf", "a", "1", "-c", "b=2", "--port", "9"]) == [
        "serve",
        "--conf",
        "a=1",
        "-c",
        "b=2",
        "--port",
        "9",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "--studies", "nowhere"], "must be a folder"),
        (["serve", "--studies", ".", "--conf", "budgte", "5"], "Did you mean 'budget'"),
        (["serve", "--studies", ".", "--conf", "strategy", "best"], "max_entropy"),
        (["serve", "--studies", ".", "--conf", "model", "best"], "unet2d"),
        (["serve", "--studies", ".", "--conf", "cold_start", "max_entropy"], "needs no model"),
        (["serve", "--studies", ".", "--conf", "labels", "background,organ"], "background"),
        (["serve", "--studies", "http://ann:secret@127.0.0.1:1/dicom-web"], "MONAI_LABEL_DICOMWEB_USERNAME"),
        (["annotate", "--truth", "nowhere"], "folder with labels"),
        (["annotate", "--truth", ".", "--server", "http://127.0.0.1:9"], "did not answer"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_is_wrong(arguments: list[str], told: str, tmp_path: Path, nextslice: Run) -> None:
    ended = nextslice(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_strategies_lists_every_strategy(tmp_path: Path, nextslice: Run) -> None:
    import strategies

    listed = nextslice("strategies", cwd=tmp_path).stdout
    assert all(re.search(rf"^\| {name} +\|", listed, re.MULTILINE) for name in strategies.names())


def test_demo_data_refuses_to_overwrite(tmp_path: Path, nextslice: Run) -> None:
    assert nextslice("demo-data", "demo", "--patients", "2", cwd=tmp_path).returncode == 0
    again = nextslice("demo-data", "demo", cwd=tmp_path)
    assert again.returncode == 2
    assert "demo" in again.stderr


def test_doctor_finds_a_broken_volume(tmp_path: Path, nextslice: Run) -> None:
    write_phantoms(tmp_path / "demo", patients=2, seed=0)
    assert nextslice("doctor", "--studies", "demo/images", cwd=tmp_path).returncode == 0
    (tmp_path / "demo" / "images" / "broken.nii.gz").write_bytes(b"not an image")
    ended = nextslice("doctor", "--studies", "demo/images", cwd=tmp_path)
    assert ended.returncode == 1
    assert "BAD  broken.nii.gz" in ended.stdout


@pytest.mark.slow
def test_the_robot_does_the_whole_job_and_dice_rises(tmp_path: Path, serve: Callable[..., Any], nextslice: Run) -> None:
    """Three rounds with no hand on it: ask, submit, retrain, publish, sweep, new round."""
    write_phantoms(tmp_path / "demo", patients=22, seed=3, shape=(48, 48, 12))
    server = serve(tmp_path / "demo", epochs="2", steps_per_epoch="60", batch_size="8", budget="6")
    asked = ["--truth", str(server.truth), "--strategy", "max_entropy", "--until", "18", "--evaluate", "8"]
    ended = nextslice("annotate", "--server", server.url, *asked, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:] + server.log.read_text()[-2000:]
    lines = re.findall(
        r"round (\d): (\d+) slices annotated, model \w+, mean Dice ([\d.]+)(?: \+- [\d.]+)? on \d+ unseen", ended.stdout
    )
    assert [(int(number), int(slices)) for number, slices, _ in lines] == [(1, 6), (2, 12), (3, 18)]
    went = re.search(r"unseen to the end, mean Dice went ([\d.]+) -> [\d.]+ -> ([\d.]+)", ended.stdout)
    assert went, ended.stdout
    assert float(went[2]) > float(went[1])
    server.wait_for("the next round", lambda p: any(r["state"] == "open" and r["model"] for r in p["rounds"]))
    with server.client() as http:
        rounds = [r for r in http.get("/al/rounds").json() if r["strategy"] == "max_entropy"]
    assert [r["state"] for r in rounds][::-1] == ["done", "done", "done", "open"]
    assert [r["selected_by"] for r in rounds][::-1] == ["spread", "max_entropy", "max_entropy", "max_entropy"]


def test_volumes_as_units_with_a_3d_model(demo: Path, serve: Callable[..., Any], nextslice: Run) -> None:
    server = serve(demo, unit="volume", budget="2", strategy="margin", patch="32,32,16")
    ended = nextslice(
        "annotate", "--server", server.url, "--truth", str(server.truth), "--until", "60", "--evaluate", "1", cwd=demo
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:] + server.log.read_text()[-2000:]
    with server.client() as http:
        assert http.get("/info/").json()["models"]["unet3d"]["dimension"] == 3
        rounds = http.get("/al/rounds").json()
        done = [r for r in rounds if r["selected_by"] == "margin" and r["state"] == "open"]
        assert done
        item = http.get(f"/al/rounds/{done[0]['id']}").json()["items"][0]
    assert item["slice"] is None


def test_stock_start_server_runs_the_app_with_our_door(demo: Path, serve: Callable[..., Any], tmp_path: Path) -> None:
    """`monailabel start_server` brings its own application; ours must take its place before the first request."""
    server = serve(demo)
    server.stop()
    arguments = [
        "--app",
        str(ROOT / "apps" / "radiology"),
        "--studies",
        str(server.images),
        "--host",
        "127.0.0.1",
        "--port",
        str(server.port),
    ]
    server.command = lambda _: [
        sys.executable,
        "-m",
        "monailabel.main",
        "start_server",
        *arguments,
        "--conf",
        "strategy",
        "spread",
    ]
    server.start()
    with server.client() as http:
        assert http.get("/al/health").json()["status"] == "ok"
        assert http.post("/activelearning/spread", json={}).json()["ask"]["strategy"] == "spread"
        assert http.delete("/datastore/image", params={"id": "patient001"}).status_code == 403
        assert http.post("/infer/unet2d", params={"image": "/etc/hostname"}).status_code == 404
        assert http.post("/reload").status_code == 403
        answer = http.get("/info/", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert http.post("/activelearning/spread", content=b"[" * 2_000_000).status_code == 413


def test_the_default_host_is_this_machine_only(demo: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo)
    assert httpx.get(f"{server.url}/al/health").status_code == 200
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {
        line[1].split(":")[0] for line in listening if int(line[1].split(":")[1], 16) == server.port and line[3] == "0A"
    }
    assert addresses == {"0100007F"}
