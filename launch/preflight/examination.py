"""The checks in their order, as one rank goes through them together with the others."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from launch.preflight import clocks, configuration, gpus, hosts, inputs, roster, storage, versions, wires
from launch.preflight.configuration import Configuration
from launch.preflight.exchange import Exchange
from launch.preflight.report import Report
from launch.preflight.verdict import Judgement
from training.recipe import ConfigError
from training.world import World, slurm_job

Result = TypeVar("Result")


class Examination:
    """One rank's part in all checks. Whatever it can't look at it says, and goes on: others wait for it."""

    def __init__(
        self, world: World, own: Configuration, exchange: Exchange, fabric: ModuleType, store: Any, began: float
    ) -> None:
        """`fabric` is training.ranks.fabric, with `store` for its process groups; `began`: the start on the monotonic clock."""
        self.world, self.own, self.exchange, self.fabric, self.store = world, own, exchange, fabric, store
        self.began = began
        self.parts: dict[str, float] = {"starting": time.monotonic() - began}
        """Seconds that each part took here."""

    def run(self) -> Report | None:
        """Go through all checks; the report on rank 0.

        Raises:
            ConfigError: on all ranks, when it is not a node but the configuration that is wrong.
            Silence: this rank has lost the others.
        """
        everybody = range(self.world.size)
        mine = roster.presence(self.world, os.environ) | {"problems": self.own.problems}
        came = self._timed("waiting for all ranks", lambda: self.exchange.collected("presence", mine, everybody))
        self.missing = sorted(self.exchange.lost)
        self.exchange.lost.clear()
        everyone_wrong = configuration.is_wrong({rank: said["problems"] for rank, said in came.items()})
        told = self.exchange.told("roster", {
            "nodes": {str(rank): node for rank, node in roster.nodes_of(came).items()}, "is_wrong": everyone_wrong,
            "token": job.job if (job := slurm_job(os.environ)) else str(os.getpid()),
        })  # fmt: skip
        if told["is_wrong"]:
            raise ConfigError(self.own.problems)
        self.nodes: dict[int, str] = {int(rank): node for rank, node in told["nodes"].items()}
        """Of the ranks that came."""
        self.ranks: dict[str, list[int]] = {}
        for rank, node in self.nodes.items():
            self.ranks.setdefault(node, []).append(rank)
        self.leaders = {node: ranks[0] for node, ranks in self.ranks.items()}
        facts = self._timed("looking at nodes", self._facts)
        ahead = self._timed("comparing clocks", self._clocks)
        stored = self._timed("shared storage", lambda: self._storage(told["token"]))
        measured = self._timed("wires", self._wires)
        if self.world.rank != 0:
            return None
        judgements = self._judged(facts, ahead, stored, measured, came)
        return Report(
            judgements=judgements, nodes=list(self.ranks), ranks=self.world.size, seconds=time.monotonic() - self.began,
            parts=self.parts,
        )  # fmt: skip

    def _timed(self, part: str, act: Callable[[], Result]) -> Result:
        """What `act` returns; its time counts as this part's."""
        began = time.monotonic()
        result = act()
        self.parts[part] = time.monotonic() - began
        return result

    @property
    def _is_leader(self) -> bool:
        return self.world.rank in self.leaders.values()

    def _facts(self) -> dict[int, Any]:
        """What ranks and nodes say of themselves."""
        facts: dict[str, Any] = {"unseen": {}}
        looks: dict[str, Callable[[], Any]] = {"gpus": gpus.look}
        if self._is_leader:
            looks |= {"memory": hosts.look, "versions": lambda: versions.look() | self.fabric.versions()}
            if self.own.config is not None:
                config = self.own.config
                looks["inputs"] = lambda: inputs.look(config)
        for name, look in looks.items():
            self.exchange.doing(f"looking at its {name}")
            try:
                facts[name] = look()
            except (OSError, ValueError) as error:
                facts["unseen"][name] = str(error)
        return self.exchange.collected("facts", facts, self.nodes)

    def _clocks(self) -> dict[str, float]:
        if not self._is_leader:
            return {}
        self.exchange.doing("comparing clocks")
        return clocks.measure(self.exchange, self.leaders)

    def _storage(self, token: str) -> dict[int, Any]:
        """What the nodes that can read the recipe see of each other's files."""
        if not self._is_leader:
            return {}
        self.exchange.doing("writing to and reading from run.dir")
        config = self.own.config
        able = {
            rank
            for rank, can in self.exchange.gathered("can read", config is not None, self.leaders.values()).items()
            if can
        }
        found = None
        here = {node: rank for node, rank in self.leaders.items() if rank in able}
        if config is not None:
            found = storage.take_part(self.exchange, here, self.nodes[self.world.rank], config.run.dir, token)
        elif self.world.rank == 0:
            storage.hear_out(self.exchange, here)
        return self.exchange.collected("storage", found, self.leaders.values())

    def _wires(self) -> dict[int, Any] | str:
        """What was measured by rank; or why nothing was."""
        silent = [rank for rank in range(self.world.size) if rank not in self.exchange.present]
        skipped = f"rank {silent[0]} is missing" if silent else ""
        if skipped := self.exchange.told("wires", skipped):
            return skipped
        load = self.fabric.load_of("cuda" if self.fabric.has_gpu() else "cpu")
        # Who waits in vain gives up while rank 0 still waits for its report.
        load = dataclasses.replace(load, timeout=min(load.timeout, self.exchange.limit / 2))
        names = list(self.ranks)

        def doing(stage: str) -> None:
            kind, _, number = stage.partition(" ")
            said = {"join": "joining the process group", "gpu": "taking its GPU", "inside": "a sum inside its node", "all": "a sum over all ranks",
                    "matmul": "a matrix product"}.get(kind)  # fmt: skip
            self.exchange.doing(said or f"a sum with {names[int(number)]}")

        found = self.fabric.measure(self.world, self.store, list(self.ranks.values()), load, doing)
        return self.exchange.collected("measured", found, range(self.world.size))

    def _judged(
        self, facts: Mapping[int, Any], ahead: Mapping[str, float], stored: Mapping[int, Any], measured: Mapping[int, Any] | str,
        came: Mapping[int, Any],
    ) -> list[Judgement]:  # fmt: skip
        first = self.nodes[0]
        counts = {node: len(ranks) for node, ranks in self.ranks.items()}
        sizes = configuration.sizes_of(self.own, self.world.size, max(counts.values()))
        planned = roster.expected(os.environ)
        missing = {
            rank: roster.node_of_missing(rank, self.nodes, planned, self.world.local_size) for rank in self.missing
        }
        unseen = {rank: said["unseen"] for rank, said in facts.items()}
        judgements = [
            roster.judge(self.world.size, self.nodes, missing, self.exchange.lost, unseen, self.exchange.limit)
        ]
        problems = {node: came[leader]["problems"] for node, leader in self.leaders.items()}
        if any(problems.values()):
            judgements.append(configuration.judge(problems))
        kept = 0
        if (config := self.own.config) is not None:
            each = config.checkpoint
            kept = storage.num_kept(each.keep, each.keep_at, keeps_best=each.keep_best is not None)

        def by_node(name: str) -> dict[str, Any]:
            return {node: facts[leader][name] for node, leader in self.leaders.items() if name in facts.get(leader, {})}

        shown = {
            node: [facts[rank]["gpus"] for rank in ranks if "gpus" in facts.get(rank, {})]
            for node, ranks in self.ranks.items()
        }
        return [
            *judgements,
            gpus.judge({node: answers for node, answers in shown.items() if answers}),
            hosts.judge(by_node("memory"), counts, sizes.copy_bytes),
            clocks.judge(ahead, first),
            storage.judge({node: stored[leader] for node, leader in self.leaders.items() if stored.get(leader)},
                          sizes.checkpoint_bytes, kept, sizes.unknown),
            inputs.judge(by_node("inputs")),
            versions.judge(by_node("versions")),
            wires.judge({}, self.ranks, measured) if isinstance(measured, str) else wires.judge(measured, self.ranks),
        ]  # fmt: skip
