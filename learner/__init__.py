"""The learner: objectives, batches, and the DeepSpeed group that takes the steps and sends the weights."""
