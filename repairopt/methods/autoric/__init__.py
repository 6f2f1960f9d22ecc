"""The methods of AutoRIC: one shot, incremental, bisection, sequential."""
