"""X-Pose on live video: `python run_pipeline.py run --source clip.mp4 --prompt person`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
