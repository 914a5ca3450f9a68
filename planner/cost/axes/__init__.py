"""What each way of splitting a job over devices has to send, and how long that takes alone. One file per axis."""
