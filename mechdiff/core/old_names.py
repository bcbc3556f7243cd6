"""Names of version 0.1, so that its saved configs, models, results and reports stay readable and its
commands run."""

# class of a config -> its field then -> its field now
CONFIG_FIELDS = {
    "DataConfig": {"level": "complexity"},
    "SweepConfig": {"kinds": "ablations", "mean_images": "reference_images"},
}

# of saved datasets: dimensions and variables then -> now
DATASET_NAMES = {
    "kind": "ablation",
    "part": "component_type",
    "normalised_entropy": "normalized_entropy",
    "synergy": "interaction",
    "dose": "gate",
    "damage": "relative_increase",  # of random sets of channels
}

# of a training record: entries then -> now
RECORD_NAMES = {"memorisation": "memorization"}

# of launchers: flags then -> now
FLAG_NAMES = {"doses": "gates", "kinds": "sources", "every_level": "every_timestep"}

# of saved datasets: attributes then -> now
ATTRIBUTE_NAMES = {"subject": "denoiser", "pictures": "images_total"}
