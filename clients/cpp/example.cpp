// Prints what a publisher sees: xpose_example tcp://127.0.0.1:5555

#include <cstdio>
#include <exception>

#include <xpose/client.hpp>

int main(int argc, char** argv) {
    if (argc != 2) return std::fprintf(stderr, "usage: %s tcp://ADDRESS:PORT\n", argv[0]), 2;
    try {
        xpose::Subscriber subscriber(argv[1]);
        xpose::Received pose;
        xpose::SourceState change;
        for (;;) {
            if (subscriber.receive_event(pose, change) == xpose::Event::state) {
                std::printf("%s is %s\n", change.source.c_str(), change.state.c_str());
                continue;
            }
            const auto& message = pose.message;
            std::printf("%s frame %lld, age %.3f s, missed %lld:", message.source.c_str(),
                        static_cast<long long>(message.frame), pose.age_s, static_cast<long long>(pose.missed));
            for (const auto& track : message.tracks)
                std::printf(" %s %lld", track.class_name.c_str(), static_cast<long long>(track.id));
            std::printf("\n");
            std::fflush(stdout);
        }
    } catch (const std::exception& error) {
        return std::fprintf(stderr, "error: %s\n", error.what()), 1;
    }
}
