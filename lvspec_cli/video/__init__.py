"""Video in: a local file becomes a Clip, decoded in a child process that can be ended."""
