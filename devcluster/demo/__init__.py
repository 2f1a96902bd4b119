"""`make demo`: a job from `helm install` to generated text, through the loss of a node in the middle."""
