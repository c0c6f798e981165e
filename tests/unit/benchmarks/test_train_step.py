"""The training benchmarks: the rows both sides get, what a claim compares, where a step's time went."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks import claims, gpu_step, peers, train_step
from training.batches import stack

CONTENDERS = Path(__file__).resolve().parents[3] / "benchmarks" / "contenders"


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(CONTENDERS)
    yield importlib.import_module("steps")
    sys.modules.pop("steps", None)


@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_rows_are_documents_whose_first_part_is_masked(steps, masked):
    rows = steps.make_rows(20, seq_len=256, vocab_size=1000, document=60, masked=masked)

    is_target = rows.targets != steps.IGNORE
    follows = np.diff(rows.position_ids, axis=1) == 1
    # The last token of a document predicts nothing; every other target is the token that follows in the row.
    assert not is_target[:, -1].any()
    assert not is_target[:, :-1][~follows].any()
    assert (rows.targets[:, :-1] == rows.input_ids[:, 1:])[is_target[:, :-1]].all()
    assert (rows.position_ids[:, 1:][~follows] == 0).all()
    if masked == 0:
        assert is_target[:, :-1][follows].all()
    else:
        assert 0.45 < is_target.mean() < 0.55
        # Prompts come first: a target is followed by a target until its document ends.
        assert not (is_target[:, :-2] & ~is_target[:, 1:-1] & follows[:, 1:]).any()


def test_more_rows_start_with_the_same_ones(steps):
    few, many = (steps.make_rows(count, seq_len=64, vocab_size=99, document=20, masked=0.5) for count in (3, 5))
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one, other[:3])


def test_both_sides_have_the_same_loss(steps):
    rows = steps.make_rows(2, seq_len=64, vocab_size=50, document=20, masked=0.5)
    logits = torch.randn(2, 64, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    theirs = ForCausalLMLoss(logits, torch.from_numpy(rows.labels()), vocab_size=50)
    micro = stack([gpu_step.Row(lane, *(column[lane] for column in rows)) for lane in range(2)])
    log_p = logits.flatten(0, 1).log_softmax(-1)[micro.target_index, micro.targets]

    # transformers computes in fp32.
    assert -log_p.mean().item() == pytest.approx(theirs.item(), rel=1e-6)


def test_claims_divide_the_peers_seconds_by_ours():
    def result(seconds, peak, loss):
        return {"median_seconds": seconds, "cpu_seconds": seconds, "peak_bytes": peak, "first_loss": loss}

    found = train_step.step_claims(
        "lora", "fp32", "x",
        {
            "peer": [result(3.0, 100, 10.0)], "ours_zero3": [result(2.0, 80, 10.0)],
            "ours_replicated": [result(1.0, 50, 10.0002)],
        },
    )  # fmt: skip
    by_name = {line["claim"]: line for line in found}

    assert by_name["lora_tokens_per_second_ours_zero3_x"]["ratio"] == 1.5
    chosen = by_name["lora_tokens_per_second_ours_replicated_x"]
    assert (chosen["ratio"], chosen["goal"], chosen["processor_time"]) == (3.0, ">=1.3", 3.0)
    assert by_name["lora_peak_memory_ours_replicated_x"]["ratio"] == 0.5
    # 2e-5 apart is twice what is allowed.
    assert by_name["lora_first_loss_ours_replicated_x"]["ratio"] == pytest.approx(2.0, rel=1e-3)


def test_ours_that_took_no_part_has_no_claims():
    one = [{"median_seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 1, "first_loss": 1.0}]
    found = train_step.step_claims("full", "bf16", "x", {"peer": one, "ours_zero3": one})
    assert [line["claim"] for line in found] == ["full_tokens_per_second_ours_zero3_x", "full_peak_memory_ours_zero3_x"]


def test_contenders_of_a_case_take_turns(monkeypatch, tmp_path):
    order = []
    result = {"median_seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 1, "first_loss": 1.0}
    monkeypatch.setattr(train_step, "step", lambda name, *_: order.append(name) or result)
    case = train_step.Case(method="full", precision="bf16", masked=0.0, contenders=("peer", "ours_zero3"))
    size = train_step.Size(hidden=64, layers=1, seq_len=8, document=8, micro=1, accumulation=1)
    found = train_step.measure(case, tmp_path, size, 2, 1, tmp_path)
    assert order == ["peer", "ours_zero3", "ours_zero3", "peer"]
    assert {name: len(results) for name, results in found.items()} == {"peer": 2, "ours_zero3": 2}


def test_the_trainer_has_no_process_that_loads_its_rows():
    assert "dataloader_num_workers=0," in (CONTENDERS / "trainer_steps.py").read_text()


def test_a_contender_runs_on_several_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "CONTENDERS", tmp_path)
    (tmp_path / "script.py").write_text(
        "import json, os, sys\n"
        "if os.environ['RANK'] == '1': print(json.dumps([os.environ['WORLD_SIZE'], os.environ['DS_ACCELERATOR'], sys.argv[1]]))\n"
    )
    assert peers.run(sys.executable, "script.py", "given", scratch=tmp_path, timeout=60, ranks=2) == [
        "2",
        "cpu",
        "given",
    ]


def test_a_machine_without_the_packages_has_versions_too(monkeypatch):
    def version(name):
        raise claims.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(claims.importlib.metadata, "version", version)
    assert set(claims.versions().values()) == {None}


class TestGpuStep:
    """On the CPU, with shapes for it."""

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch):
        # Joining a process group sets these.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)

    def test_it_writes_what_it_measured_part_by_part(self, tmp_path, monkeypatch, capsys):
        file = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--quick", "--parts", "profile,rows", "--json", str(file)])
        monkeypatch.setitem(sys.modules, "deepspeed", None)
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as ended:
                gpu_step.main()
        finally:
            torch.set_num_threads(threads)

        assert ended.value.code == 0
        assert "the numbers are no claim" in capsys.readouterr().out
        found = json.loads(file.read_text())
        assert (found["is_claim"], set(found["parts"])) == (False, {"profile", "rows"})
        lora = found["parts"]["profile"]["ours_lora"]
        assert lora["span_ms"] == pytest.approx(lora["gemm_ms"] + lora["attention_ms"] + lora["rest_ms"])
        assert min(lora["gemm_ms"], lora["attention_ms"], lora["rest_ms"]) > 0
        assert found["parts"]["rows"]["ours_lora_2_rows"]["tokens_per_second"] > 0

    def test_a_part_that_fails_leaves_the_others(self, tmp_path, monkeypatch, capsys):
        def broken(place):
            raise torch.OutOfMemoryError("too large")

        def left_out(place):
            raise gpu_step.NotHere("no such GPU")

        file = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--parts", "rows,full", "--json", str(file)])
        monkeypatch.setattr(gpu_step, "more_rows", broken)
        monkeypatch.setattr(gpu_step, "full", left_out)
        monkeypatch.setattr(gpu_step, "open_place", lambda quick: gpu_step.Place(torch.device("cpu"), None, None, 8, 1))

        with pytest.raises(SystemExit) as ended:
            gpu_step.main()

        parts = json.loads(file.read_text())["parts"]
        assert ended.value.code == 1
        assert parts == {"rows": {"failed": "OutOfMemoryError: too large"}, "full": {"left_out": "no such GPU"}}
        assert "left out: no such GPU" in capsys.readouterr().out

    def test_unknown_parts_are_refused(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--parts", "adapters,ful"])
        with pytest.raises(SystemExit):
            gpu_step.main()
        assert "--parts: ful is none of adapters, profile, full" in capsys.readouterr().err

    def test_kernels_are_told_apart(self):
        assert gpu_step.GEMM.search("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT")
        assert gpu_step.GEMM.search("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas")
        assert gpu_step.ATTENTION_KERNEL.search(
            "pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, 4"
        )
        assert not gpu_step.GEMM.search("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor")
