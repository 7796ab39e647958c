"""SSKD (xuguodong03/SSKD): self-supervision on four rotations of every image.

The teacher's head is trained on the same loader first. Its predictions have three rows a sample, so they
are no observation; and an epoch without one does not count.
"""

from __future__ import annotations

from .profile import Profile, whole

__all__ = ["PROFILE"]

PROFILE = Profile(
    name="sskd",
    title="SSKD",
    covers="its one method",
    script="student.py",
    marks=("wrapper.py", "cifar.py", "utils.py", "teacher.py"),
    observe="utils.accuracy",
    method=lambda arguments: "sskd",
    shims=("torch_six",),
    before=lambda arguments: whole(arguments, "--t-epoch", default=60),
    epochs=lambda arguments: whole(arguments, "--epoch", default=240),
)
