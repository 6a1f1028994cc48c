"""The forward pass: decoder, attention, rotary positions, dropout, and the loss of answers."""
