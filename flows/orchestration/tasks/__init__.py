"""What a flow run consists of: the task of a stage, its cache, and the flow that builds the records."""
