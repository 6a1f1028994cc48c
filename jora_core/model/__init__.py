"""The model's computation: decoder, attention, rotary positions, dropout, and the loss of answers."""
