"""Running a contender: its JSON, and an error that says why there is none."""

import os
import sys
import time

import pytest

from benchmarks import claims, peers


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a script where contenders are looked for, and return its name."""
    monkeypatch.setattr(peers, "CONTENDERS", tmp_path)

    def write(code):
        (tmp_path / "script.py").write_text(code)
        return "script.py"

    return write


def test_the_last_line_is_the_result_and_one_thread_the_rule(script, tmp_path):
    name = script(
        "import json, os, sys; print('noise'); print(json.dumps([sys.argv[1:], os.environ['RAYON_NUM_THREADS']]))"
    )

    result = peers.run(sys.executable, name, "--data", 5, scratch=tmp_path, timeout=20)
    assert result == [["--data", "5"], "1"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('the reason')", "script.py failed with exit code 1:(?s:.*)the reason"),
        ("", "script.py failed with exit code 0"),
        ("print('no json')", "the last line of script.py is no JSON: no json"),
    ],
)
def test_a_failure_says_what_the_script_wrote(script, tmp_path, code, message):
    with pytest.raises(peers.PeerError, match=message):
        peers.run(sys.executable, script(code), scratch=tmp_path, timeout=20)


def test_a_script_that_takes_too_long_is_killed_with_its_children(script, tmp_path):
    name = script(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('waiting', file=sys.stderr, flush=True)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(peers.PeerError, match=r"took more than 0.5 s and was killed:\nwaiting"):
        peers.run(sys.executable, name, scratch=tmp_path, timeout=0.5)

    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if _has_ended(child):
            return
        time.sleep(0.01)
    pytest.fail(f"the process {child} is still there")


def test_a_child_left_by_a_script_that_is_done_is_killed(script, tmp_path):
    name = script(
        "import subprocess, sys\n"
        "devnull = subprocess.DEVNULL\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=devnull, stderr=devnull)\n"
        "print(child.pid)\n"
    )
    child = peers.run(sys.executable, name, scratch=tmp_path, timeout=20)
    for _ in range(100):
        if _has_ended(child):
            return
        time.sleep(0.01)
    pytest.fail(f"the process {child} is still there")


def test_a_peer_that_fails_is_a_message_and_no_traceback(capsys):
    def main():
        raise peers.PeerError("pip could not install thing==1.0:\nno such thing")

    with pytest.raises(SystemExit) as ended:
        peers.reported(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "pip could not install thing==1.0:\nno such thing\n"
    peers.reported(lambda: None)


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(peers.subprocess, "run", pip)
    monkeypatch.setattr(peers.venv, "create", lambda folder, with_pip: folder.mkdir(parents=True))
    peer = peers.Peer("thing 1.0", ("thing==1.0",))

    assert peers.installed(peer, tmp_path) == peers.installed(peer, tmp_path)
    assert [command[-1] for command in asked] == ["thing==1.0"]
    assert peers.installed(peers.Peer("thing 1.0", ("thing==1.0", "more")), tmp_path) != peers.installed(peer, tmp_path)


def test_an_environment_that_pip_cannot_make_is_an_error_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(
        peers.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1, "stderr": "no such thing"})()
    )
    monkeypatch.setattr(peers.venv, "create", lambda folder, with_pip: folder.mkdir(parents=True))
    for _ in range(2):
        with pytest.raises(peers.PeerError, match=r"pip could not install thing==1.0:\nno such thing"):
            peers.installed(peers.Peer("thing 1.0", ("thing==1.0",)), tmp_path)


def test_a_claim_is_the_median_of_the_ratios_within_repetitions(capsys):
    line = claims.claim("speed", [2.0, 9.0, 4.0], [1.0, 3.0, 1.0], ">=2", "thing 1.0")
    claims.show([line])

    assert capsys.readouterr().out == "claim=speed ratio=3.000 goal=>=2 spread=2.000..4.000 peer=thing 1.0\n"


def _has_ended(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # An orphan that nobody has waited for is still listed.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
