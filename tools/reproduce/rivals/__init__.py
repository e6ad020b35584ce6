"""Methods against their rivals, each at settings that were chosen for it on held-out images, then with five seeds."""
