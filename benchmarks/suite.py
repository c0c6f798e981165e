"""Which scripts `make bench` runs and how long each should take, what they leave out, and the promises with the claims that measure them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Script:
    """A script of benchmarks/ that writes claims."""

    name: str
    """Without its suffix."""
    minutes: float
    """What it should take on two quiet cores, peers' environments being there; it is stopped after twice as long."""
    peers: tuple[str, ...] = ()
    """Keys of peers.PEERS: environments that are made before its clock starts."""
    takes_real_data: bool = False
    """Whether it takes other texts, or another tokenizer, where shared/data is not beside the repository."""

    def command(self) -> list[str]:
        """Its command line, from the root of the repository."""
        return ["python", f"benchmarks/{self.name}.py", "--bench"]


SCRIPTS = (
    Script(name="adapter_step", minutes=7.2),
    Script(name="loss_head", minutes=1.6),
    Script(name="train_step", minutes=6.3),
    Script(name="instruction_step", minutes=5.2, takes_real_data=True),
    Script(name="data_throughput", minutes=4.1, peers=("mosaicml", "datasets", "litdata"), takes_real_data=True),
    Script(name="data_resume", minutes=10, peers=("mosaicml", "datasets"), takes_real_data=True),
    Script(name="tokenization", minutes=2.7, takes_real_data=True),
    Script(name="packing", minutes=0.9, peers=("trl",), takes_real_data=True),
    Script(name="index_scale", minutes=0.8),
    Script(name="shuffle_quality", minutes=1.1),
    Script(name="checkpoint", minutes=8.9),
    Script(name="chaos", minutes=1.2),
    Script(name="eval_scoring", minutes=3.1, takes_real_data=True),
    Script(name="eval_generation", minutes=2.3, takes_real_data=True),
    Script(name="collect", minutes=1),
    Script(name="memory_model", minutes=2.3),
    Script(name="preflight", minutes=0.7),
)

NOT_RUN = {
    "gpu_step": "needs a GPU that holds a 7B model, and none has been available",
    "scaling": "measures growth with size, which is no ratio to a peer; docs/scaling.md has its tables",
    "synthetic_runs": "makes run folders for other scripts",
}
"""Scripts that are not part of the CPU set, and why."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a script measures without --bench only."""

    script: str
    what: str
    measured: str
    """Where, and what came out."""
    command: str


BEFORE = "of commit 16c89ffea17a"
"""The commit whose results/ has the whole runs of before."""

LEFT_OUT = (
    LeftOut(
        script="adapter_step", what="rank 64, layers 4096 wide, memory at rank 256",
        measured="`results/adapter_step_partial.txt`: MonteCLoRA over LoRA 1.014 to 1.035, the most at rank 256",
        command="python benchmarks/adapter_step.py",
    ),
    LeftOut(
        script="adapter_step", what="activation checkpointing", measured="nowhere yet",
        command="python benchmarks/adapter_step.py",
    ),
    LeftOut(
        script="loss_head", what="no label masked", measured=f"`results/loss_head.json` {BEFORE}",
        command="python benchmarks/loss_head.py",
    ),
    LeftOut(
        script="train_step", what="full finetuning replicated, and in fp32",
        measured="`results/train_step_full_finetuning_partial.txt`: 1.40 to 1.68 replicated, 1.60 in fp32 under ZeRO-3, half masked",
        command="python benchmarks/train_step.py --methods full",
    ),
    LeftOut(
        script="train_step", what="LoRA without a mask, in bf16, under ZeRO-3", measured="nowhere yet",
        command="python benchmarks/train_step.py --methods lora",
    ),
    LeftOut(
        script="data_throughput", what="the reference engine", measured=f"`results/data_throughput.json` {BEFORE}",
        command="python benchmarks/data_throughput.py",
    ),
    LeftOut(
        script="data_resume", what="the reference engine, a worker process", measured=f"`results/data_resume.json` {BEFORE}, against row 1,000",
        command="python benchmarks/data_resume.py",
    ),
    LeftOut(
        script="index_scale", what="5.5 GB", measured=f"`results/index_scale.json` {BEFORE}",
        command="python benchmarks/index_scale.py",
    ),
    LeftOut(
        script="checkpoint", what="full finetuning, 1.0 GB; DeepSpeed and async_save on one rank", measured="nowhere yet",
        command="python benchmarks/checkpoint.py",
    ),
    LeftOut(
        script="eval_scoring", what="40 questions of each set", measured=f"`results/eval_scoring.json` {BEFORE}: 3.155",
        command="python benchmarks/eval_scoring.py",
    ),
    LeftOut(
        script="eval_generation", what="more prompts, longer texts", measured="nowhere yet",
        command="python benchmarks/eval_generation.py",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A figure that is promised, and the claims that measure it: of several the worst counts."""

    text: str
    measured: str
    """In which case, and what is divided by what."""
    goal: str
    """As in a claim, e.g. "<=1.05"."""
    script: str
    claims: tuple[str, ...]
    """Patterns of the claims' names, as in a shell."""
    predicted: str = ""
    """What `launch plan` says where nothing could be measured."""


PROMISES = (
    Promise(
        text="a MonteCLoRA step costs hardly more than a LoRA step", measured="seconds, a LLaMA of 8 blocks",
        goal="<=1.05", script="adapter_step", claims=("monteclora_n?_over_lora_model_*",),
    ),
    Promise(
        text="MonteCLoRA keeps no noise", measured="bytes between steps, per layer",
        goal="<=0", script="adapter_step", claims=("noise_bytes_between_steps_per_layer_n?",),
    ),
    Promise(
        text="a step of full finetuning is faster than the Trainer's", measured="tokens per second, ZeRO-3 over ZeRO-3",
        goal=">=1.2", script="train_step", claims=("full_tokens_per_second_ours_zero3_*",),
    ),
    Promise(
        text="an adapter on a replicated base sends little", measured="bytes of a LoRA step, replicated over the Trainer's ZeRO-3",
        goal="<=0.02", script="train_step", claims=("lora_bytes_replicated_over_trainer_zero3",),
    ),
    Promise(
        text="the loss head is fast, half of the labels masked", measured="seconds over the loss on all logits",
        goal="<=0.6", script="loss_head", claims=("loss_head_time_*_masked_50",),
    ),
    Promise(
        text="the loss head is small, half of the labels masked", measured="peak memory over the loss on all logits",
        goal="<=0.5", script="loss_head", claims=("loss_head_memory_*_masked_50",),
    ),
    Promise(
        text="useful tokens per second, packed over padded instructions", measured="target tokens per second, GSM8K and code",
        goal=">=2.5", script="instruction_step", claims=("useful_tokens_over_padded_gsm8k_and_code",),
    ),
    Promise(
        text="the same", measured="target tokens per second, log-normal lengths",
        goal=">=2.5", script="instruction_step", claims=("useful_tokens_over_padded_lognormal",),
    ),
    Promise(
        text="the same losses, example by example", measured="largest relative difference",
        goal="<=1e-5", script="instruction_step", claims=("instruction_losses_*",),
    ),
    Promise(
        text="packed rows are full", measured="share of rows of 4096 that is filled",
        goal=">=0.995", script="packing", claims=("packing_fill_lognormal_*", "packing_fill_gsm8k_and_code_4096"),
    ),
    Promise(
        text="text becomes ids fast, with the fast engine", measured="MB/s over tokenizers",
        goal=">=10", script="tokenization", claims=("tokenization_over_tokenizers",),
    ),
    Promise(
        text="the same", measured="MB/s over sentencepiece",
        goal=">=10", script="tokenization", claims=("tokenization_over_sentencepiece",),
    ),
    Promise(
        text="and they are the same ids", measured="documents with other ids than sentencepiece",
        goal="<=0", script="tokenization", claims=("tokenization_documents_with_other_ids",),
    ),
    Promise(
        text="resuming costs the same anywhere", measured="seconds to the first batch, row 1,000,000 over row 0",
        goal="<=1.2", script="data_resume", claims=("data_resume_row_1000000_over_row_0",),
    ),
    Promise(
        text="resuming repeats and loses nothing", measured="rows repeated or lost, over two resumes",
        goal="<=0", script="data_resume", claims=("data_resume_rows_repeated_or_lost",),
    ),
    Promise(
        text="a checkpoint hardly stalls training", measured="seconds that training waits, over torch.save with fsync",
        goal="<=0.05", script="checkpoint", claims=("stall_over_torch_*",),
    ),
    Promise(
        text="multiple-choice suites are scored fast", measured="log-likelihoods per second of the processor",
        goal=">=2.5", script="eval_scoring", claims=("eval_scoring_speed",),
    ),
    Promise(
        text="with the same log-likelihoods", measured="largest difference, nats",
        goal="<=1e-4", script="eval_scoring", claims=("eval_scoring_error",),
    ),
    Promise(
        text="one H200, 7B, rows of 4096: LoRA", measured="tokens per second",
        goal=">=16000", script="gpu_step", claims=("lora_tokens_per_second",),
        predicted="14,588",
    ),
    Promise(
        text="one H200, 7B, rows of 4096: MonteCLoRA", measured="tokens per second over LoRA's",
        goal=">=0.95", script="gpu_step", claims=("monteclora_over_lora_tokens_per_second",),
        predicted="1.0000, without the operators that draw the noise",
    ),
    Promise(
        text="one H200, 7B, rows of 4096: full finetuning", measured="tokens per second",
        goal=">=9000", script="gpu_step", claims=("full_tokens_per_second",),
        predicted="10,373",
    ),
    Promise(
        text="killed anywhere, any number of times: nothing is lost", measured="committed steps lost",
        goal="<=0", script="chaos", claims=("chaos_committed_steps_lost",),
    ),
    Promise(
        text="and the loss curve is the same, bit by bit", measured="steps with other losses, other batches, other weights",
        goal="<=0", script="chaos", claims=("chaos_batches_*", "chaos_steps_*", "chaos_exported_*", "chaos_other_*"),
    ),
)  # fmt: skip
"""What this project promises, in the order of the table."""
