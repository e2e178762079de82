"""Small models that ship with the repository, and the scripts that trained them.

Nothing here runs at search time: the search only reads the checkpoints in
`embedded/models/`.
"""
