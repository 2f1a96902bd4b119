"""What runs inside a member: the elastic agent and the reference DeepSpeed trainer."""
