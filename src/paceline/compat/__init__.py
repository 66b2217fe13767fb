"""Command lines of other systems, understood: their published flags are read by tables and become our options.

Nothing is silently ignored. A flag is taken (it has an option here), noted (it has no meaning here, and a line on
stderr says why), or refused in one sentence (it asks for what cannot be had, or the other system does not have it).
"""
