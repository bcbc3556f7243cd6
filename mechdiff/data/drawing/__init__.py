"""How a face is drawn: brushes, the head's frame, skin, features, hair, and the layers of the scene."""
