"""EgoM2P: masked modelling over tokens of video, depth, gaze and camera."""
