"""What adapters to other frameworks build on: settings, finding pages, ranking documents."""
