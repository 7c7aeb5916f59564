"""Side by side with peers. Run the scripts; what they measured lies in results/."""
