"""Random numbers as a pure function of where in the run they are drawn.

Dropout and adapter noise come from torch's default generator, which is seeded anew for every micro-batch from the
seed, the step and the micro-batch's first data lane. So nothing has to be saved: a resumed run draws what the
uninterrupted one would have drawn. And because lanes do not know the world size, the same micro-batch draws the same
noise on 1 rank as on 64, and ranks, whose lanes differ, draw different noise.
"""

from __future__ import annotations

import hashlib


def micro_batch_seed(seed: int, step: int, first_lane: int, branch: int = 0) -> int:
    """Generator seed, uniform over 63 bits, of the micro-batch that begins at `first_lane` in `step`.

    `branch` tells several passes over the same rows apart; 0 is the one that is trained.
    """
    place = f"{seed}/{step}/{first_lane}" + (f"/{branch}" if branch else "")
    digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
