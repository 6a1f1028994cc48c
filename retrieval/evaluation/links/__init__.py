"""Reply links as sets: their file, their scores, and writing them in the format of irc-disentanglement."""
