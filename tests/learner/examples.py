"""Objective shared by the learner tests."""

from learner.config import Objective, RouteLoss

OBJECTIVE = Objective(
    routes=(RouteLoss(channel="text", weight=1.0),),
    clip=0.2,
    clip_high=0.2,
    ratio="rollout",
    cap=2.0,
    kl_text=0.1,
    kl_speech=0.1,
    boundary="speech",
    anchor_text=1.0,
    anchor_speech=1.0,
)
