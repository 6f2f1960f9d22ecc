"""The methods: loops over model, rows, program, solve and judge."""
