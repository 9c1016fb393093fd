"""A testbed of serial puzzles: small films in which a chain along the denoising steps can exist and is a
number.
"""
