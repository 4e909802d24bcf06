"""pmemx: distil, bank, compose and measure parametric memory in LoRA experts of a frozen language model."""
