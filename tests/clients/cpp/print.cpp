// Prints what the C++ client decodes, as JSON lines, for comparison with the Python client.
//
//   print vectors                                        hex lines on standard input
//   print allocations                                    one hex line: allocations of 1000 decodings, and msgpack's part
//   print follow ENDPOINT EVENTS [SERVER PUBLIC SECRET]  poses and states of a publisher

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>

#include <xpose/client.hpp>

static std::size_t allocations = 0;

// Not inlined: GCC would see malloc in one and delete in another, and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// Writes one JSON value; keys keep the order of the wire.
class Json {
public:
    explicit Json(std::ostream& out) : out_(out) { out_.precision(17); }

    void put(const std::string& text) {
        out_ << '"';
        for (const char c : text) {
            if (c == '"' || c == '\\') out_ << '\\';
            if (c == '\n') out_ << "\\n";
            else out_ << c;
        }
        out_ << '"';
    }
    void put(const char* text) { put(std::string(text)); }
    void put(bool value) { out_ << (value ? "true" : "false"); }
    void put(std::int64_t value) { out_ << value; }
    void put(double value) {
        if (std::isnan(value)) out_ << "null";
        else out_ << value;
    }
    template <class T>
    void put(const std::optional<T>& value) {
        if (value) put(*value);
        else out_ << "null";
    }
    void put(const xpose::Point& p) { list(std::array<double, 2>{p.x, p.y}); }
    void put(const xpose::Covariance& c) { list(std::array<double, 3>{c.xx, c.xy, c.yy}); }
    void put(const std::pair<std::int64_t, std::int64_t>& edge) { list(std::array<std::int64_t, 2>{edge.first, edge.second}); }
    void put(const std::array<double, 4>& box) { list(box); }
    template <class T>
    void put(const std::vector<T>& values) { list(values); }
    void put(const std::map<std::string, std::int64_t>& values) {
        open();
        for (const auto& [name, value] : values) field(name, value);
        close();
    }
    void put(const xpose::Track& t) {
        open();
        field("id", t.id); field("class", t.class_name); field("score", t.score); field("box_xyxy", t.box_xyxy);
        field("keypoints_raw", t.keypoints_raw); field("keypoints", t.keypoints);
        field("keypoints_predicted", t.keypoints_predicted); field("keypoints_velocity", t.keypoints_velocity);
        field("keypoints_covariance", t.keypoints_covariance); field("keypoints_measured", t.keypoints_measured);
        field("measured", t.measured);
        close();
    }
    void put(const xpose::PoseMessage& m) {
        open();
        field("schema", xpose::schema); field("session", m.session); field("seq", m.seq); field("source", m.source);
        field("frame", m.frame); field("file", m.file); field("pts_s", m.pts_s); field("source_pts_s", m.source_pts_s);
        field("host", m.host); field("capture_clock", m.capture_clock); field("capture_unix_ns", m.capture_unix_ns);
        field("capture_monotonic_ns", m.capture_monotonic_ns);
        field("capture_uncertainty_s", m.capture_uncertainty_s); field("lag_s", m.lag_s);
        field("publish_unix_ns", m.publish_unix_ns); field("width", m.width); field("height", m.height);
        field("prompt_id", m.prompt_id); field("tracks", m.tracks);
        field("replay", m.replay);
        close();
    }
    void put(const xpose::SkeletonClass& c) {
        open();
        field("name", c.name); field("keypoints", c.keypoints); field("edges", c.edges);
        close();
    }
    void put(const xpose::SkeletonMessage& m) {
        open();
        field("schema", xpose::schema); field("session", m.session); field("source", m.source);
        field("prompt_id", m.prompt_id); field("publish_unix_ns", m.publish_unix_ns); field("classes", m.classes);
        field("replay", m.replay);
        close();
    }
    void put(const xpose::StatusMessage& m) {
        open();
        field("schema", xpose::schema); field("session", m.session); field("host", m.host); field("source", m.source);
        field("state", m.state); field("since_unix_ns", m.since_unix_ns); field("publish_unix_ns", m.publish_unix_ns);
        field("publish_monotonic_ns", m.publish_monotonic_ns); field("frame_rate", m.frame_rate);
        field("lag_s", m.lag_s); field("drops", m.drops); field("last_error", m.last_error);
        field("last_capture_unix_ns", m.last_capture_unix_ns); field("capture_clock", m.capture_clock);
        field("clock_offset_s", m.clock_offset_s); field("beat_s", m.beat_s);
        field("reconnects", m.reconnects); field("replay", m.replay);
        close();
    }

    void open() { out_ << '{'; first_ = true; }
    void close() { out_ << '}'; first_ = false; }
    template <class T>
    void field(const std::string& name, const T& value) {
        if (!first_) out_ << ',';
        first_ = false;
        put(name);
        out_ << ':';
        put(value);
    }

private:
    template <class List>
    void list(const List& values) {
        out_ << '[';
        bool first = true;
        for (const auto& value : values) {
            if (!first) out_ << ',';
            first = false;
            put(value);
        }
        out_ << ']';
        first_ = false;
    }

    std::ostream& out_;
    bool first_ = true;
};

std::string bytes_of(const std::string& hex) {
    std::string bytes;
    for (std::size_t at = 0; at + 1 < hex.size(); at += 2)
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16)));
    return bytes;
}

void vectors() {
    xpose::Decoder decoder;  // one for all, as in a subscriber: nothing of one message may show in the next
    for (std::string hex; std::getline(std::cin, hex);) {
        const std::string bytes = bytes_of(hex);
        std::ostringstream line;
        try {
            const xpose::Kind kind = decoder.decode(bytes.data(), bytes.size());
            Json json(line);
            if (kind == xpose::Kind::pose) json.put(decoder.pose);
            if (kind == xpose::Kind::skeleton) json.put(decoder.skeleton);
            if (kind == xpose::Kind::status) json.put(decoder.status);
        } catch (const xpose::SchemaError&) {
            line.str("\"schema\"");
        } catch (const xpose::WireError&) {
            line.str("\"wire\"");
        }
        std::cout << line.str() << '\n';
    }
}

// Counts what `work` allocates in 1000 calls, after it has run often enough to have its buffers.
template <class Work>
std::int64_t count_allocations(Work work) {
    for (int warm_up = 0; warm_up < 10; ++warm_up) work();
    const std::size_t before = allocations;
    for (int call = 0; call < 1000; ++call) work();
    return static_cast<std::int64_t>(allocations - before);
}

void count() {
    std::string hex;
    std::getline(std::cin, hex);
    const std::string bytes = bytes_of(hex), body = bytes.substr(bytes.find('\0') + 1);
    xpose::Decoder decoder;
    msgpack::zone zone;
    Json json(std::cout);
    json.open();
    json.field("decoder", count_allocations([&] { decoder.decode(bytes.data(), bytes.size()); }));
    json.field("msgpack", count_allocations([&] {
        bool referenced = false;
        std::size_t used = 0;
        zone.clear();
        msgpack::unpack(zone, body.data(), body.size(), used, referenced);
    }));
    json.close();
    std::cout << std::endl;
}

void follow(int argc, char** argv) {
    xpose::Options options;
    if (argc == 7) {
        options.server_key = argv[4];
        options.public_key = argv[5];
        options.secret_key = argv[6];
    }
    xpose::Subscriber subscriber(argv[2], options);
    xpose::Received pose;
    xpose::SourceState change;
    for (int left = std::stoi(argv[3]); left > 0; --left) {
        const xpose::Event event = subscriber.receive_event(pose, change, 10);
        Json json(std::cout);
        json.open();
        if (event == xpose::Event::pose) {
            json.field("age_s", pose.age_s);
            json.field("missed", pose.missed);
            json.field("restarted", pose.restarted);
            json.field("message", pose.message);
        }
        if (event == xpose::Event::state) {
            json.field("source", change.source);
            json.field("state", change.state);
            json.field("alive", subscriber.alive());
        }
        json.close();
        std::cout << std::endl;
        if (event == xpose::Event::none) return;
    }
    Json json(std::cout);
    json.open();
    json.field("received", subscriber.received());
    json.field("missed", subscriber.missed());
    json.field("restarts", subscriber.restarts());
    json.close();
    std::cout << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "vectors") vectors();
    else if (mode == "allocations") count();
    else if (mode == "follow") follow(argc, argv);
    else return 2;
    return 0;
}
