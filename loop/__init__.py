"""The loop: what can be asked for, what was asked, who holds it, and what came back."""
