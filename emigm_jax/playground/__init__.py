"""A page to play with: pictures as they are revealed, a mask that is painted, commands."""
