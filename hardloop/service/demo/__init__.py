"""The demonstration: real data in, the closed loop in the middle, a report out."""
