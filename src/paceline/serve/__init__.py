"""The HTTP server: the web process imports no torch; `engine_process` alone does, in a process of its own."""
