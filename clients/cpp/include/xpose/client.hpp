// Receive the poses that X-Pose Stream publishes: messages, gaps, restarts, states, ages.
//
// One header for C++17 on cppzmq and msgpack-c. All fields with their units are in clients/FIELDS.md.
// A Subscriber belongs to one thread. Buffers are reused: after a few messages, receiving allocates no more than
// msgpack-c does.

#ifndef XPOSE_CLIENT_HPP
#define XPOSE_CLIENT_HPP

#ifndef MSGPACK_NO_BOOST
#define MSGPACK_NO_BOOST
#endif

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <fstream>
#include <limits>
#include <map>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <msgpack.hpp>
#include <zmq.hpp>

namespace xpose {

inline constexpr std::int64_t schema = 2;  // the wire schema that this header reads

// Bytes that are not a message of this schema.
struct WireError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A message of another schema.
struct SchemaError : WireError {
    using WireError::WireError;
};

// Positions in px, velocities in px/s. A coordinate that does not exist is NaN.
struct Point {
    double x, y;
};

// Covariance of a position, px squared; NaN where unknown.
struct Covariance {
    double xx, xy, yy;
};

struct Track {
    std::int64_t id = 0;
    std::string class_name;  // `class` on the wire
    double score = 0;
    std::array<double, 4> box_xyxy{};
    std::vector<Point> keypoints_raw, keypoints, keypoints_predicted, keypoints_velocity;
    std::vector<Covariance> keypoints_covariance;
    std::vector<bool> keypoints_measured;
    bool measured = false;
};

struct PoseMessage {
    std::int64_t session = 0, seq = 0;
    std::string source;
    std::int64_t frame = 0;
    std::optional<std::string> file;
    std::optional<double> pts_s, source_pts_s;
    std::string host, capture_clock;
    std::int64_t capture_unix_ns = 0, capture_monotonic_ns = 0;
    std::optional<double> capture_uncertainty_s, lag_s;
    std::int64_t publish_unix_ns = 0;
    std::int64_t width = 0, height = 0, prompt_id = 0;
    std::vector<Track> tracks;
    bool replay = false;  // from a recording: nothing must act on it by mistake
};

struct SkeletonClass {
    std::string name;
    std::vector<std::string> keypoints;
    std::vector<std::pair<std::int64_t, std::int64_t>> edges;
};

struct SkeletonMessage {
    std::int64_t session = 0;
    std::string source;
    std::int64_t prompt_id = 0, publish_unix_ns = 0;
    std::vector<SkeletonClass> classes;
    bool replay = false;
};

struct StatusMessage {
    std::int64_t session = 0;
    std::string host, source, state;
    std::int64_t since_unix_ns = 0, publish_unix_ns = 0, publish_monotonic_ns = 0;
    double frame_rate = 0;
    std::optional<double> lag_s;
    std::map<std::string, std::int64_t> drops;
    std::optional<std::string> last_error;
    std::optional<std::int64_t> last_capture_unix_ns;
    std::string capture_clock;
    std::optional<double> clock_offset_s;
    double beat_s = 0;
    std::int64_t reconnects = 0;
    bool replay = false;
};

enum class Kind { pose, skeleton, status };

namespace detail {

inline void read(const msgpack::object& from, std::int64_t& to) { to = from.as<std::int64_t>(); }
inline void read(const msgpack::object& from, bool& to) { to = from.as<bool>(); }

inline void read(const msgpack::object& from, double& to) { to = from.as<double>(); }  // integers too

inline void read(const msgpack::object& from, std::string& to) {
    if (from.type != msgpack::type::STR) throw msgpack::type_error();
    to.assign(from.via.str.ptr, from.via.str.size);
}

template <class T>
void read(const msgpack::object& from, std::optional<T>& to) {
    if (from.is_nil()) return to.reset();
    if (!to) to.emplace();
    read(from, *to);
}

inline const msgpack::object_array& array_of(const msgpack::object& from) {
    if (from.type != msgpack::type::ARRAY) throw msgpack::type_error();
    return from.via.array;
}

inline const msgpack::object* array_of(const msgpack::object& from, std::size_t size) {
    const auto& array = array_of(from);
    if (array.size != size) throw msgpack::type_error();
    return array.ptr;
}

inline double number_or_nan(const msgpack::object& from) {
    return from.is_nil() ? std::numeric_limits<double>::quiet_NaN() : from.as<double>();
}

inline void read(const msgpack::object& from, Point& to) {
    const auto* part = array_of(from, 2);
    to = {number_or_nan(part[0]), number_or_nan(part[1])};
}

inline void read(const msgpack::object& from, Covariance& to) {
    const auto* part = array_of(from, 3);
    to = {number_or_nan(part[0]), number_or_nan(part[1]), number_or_nan(part[2])};
}

inline void read(const msgpack::object& from, std::array<double, 4>& to) {
    const auto* part = array_of(from, 4);
    for (std::size_t i = 0; i < 4; ++i) to[i] = part[i].as<double>();
}

inline void read(const msgpack::object& from, std::pair<std::int64_t, std::int64_t>& to) {
    const auto* part = array_of(from, 2);
    to = {part[0].as<std::int64_t>(), part[1].as<std::int64_t>()};
}

inline void read(const msgpack::object& from, std::vector<bool>& to) {
    const auto& array = array_of(from);
    to.resize(array.size);
    for (std::size_t i = 0; i < array.size; ++i) to[i] = array.ptr[i].as<bool>();
}

inline void read(const msgpack::object& from, std::map<std::string, std::int64_t>& to) {
    to = from.as<std::map<std::string, std::int64_t>>();
}

inline void read(const msgpack::object& from, Track& to);
inline void read(const msgpack::object& from, SkeletonClass& to);

template <class T>
void read(const msgpack::object& from, std::vector<T>& to) {
    const auto& array = array_of(from);
    to.resize(array.size);
    for (std::size_t i = 0; i < array.size; ++i) read(array.ptr[i], to[i]);
}

// Finds the fields of a map by name, in any order, and passes over those that it is not asked for.
class Fields {
public:
    explicit Fields(const msgpack::object& from) {
        if (from.type != msgpack::type::MAP) throw msgpack::type_error();
        map_ = from.via.map;
    }

    template <class T>
    Fields& operator()(std::string_view name, T& to) {
        const msgpack::object* value = find(name);
        if (value == nullptr) throw WireError("the field '" + std::string(name) + "' is missing");
        read(*value, to);
        return *this;
    }

    // A field that was added within the schema: an older publisher does not send it.
    template <class T>
    Fields& operator()(std::string_view name, T& to, const T& if_absent) {
        const msgpack::object* value = find(name);
        if (value == nullptr)
            to = if_absent;
        else
            read(*value, to);
        return *this;
    }

private:
    // The publisher writes the fields in the order of the types, so the search mostly hits at once.
    const msgpack::object* find(std::string_view name) {
        for (std::uint32_t tried = 0; tried < map_.size; ++tried) {
            const auto& entry = map_.ptr[at_++ % map_.size];
            const auto& key = entry.key;
            if (key.type == msgpack::type::STR && std::string_view(key.via.str.ptr, key.via.str.size) == name)
                return &entry.val;
        }
        return nullptr;
    }

    msgpack::object_map map_{};
    std::uint64_t at_ = 0;
};

inline void read(const msgpack::object& from, Track& to) {
    Fields{from}("id", to.id)("class", to.class_name)("score", to.score)("box_xyxy", to.box_xyxy)(
        "keypoints_raw", to.keypoints_raw)("keypoints", to.keypoints)("keypoints_predicted", to.keypoints_predicted)(
        "keypoints_velocity", to.keypoints_velocity)("keypoints_covariance", to.keypoints_covariance)(
        "keypoints_measured", to.keypoints_measured)("measured", to.measured);
}

inline void read(const msgpack::object& from, SkeletonClass& to) {
    Fields{from}("name", to.name)("keypoints", to.keypoints)("edges", to.edges);
}

inline void read(const msgpack::object& from, PoseMessage& to) {
    Fields{from}("session", to.session)("seq", to.seq)("source", to.source)("frame", to.frame)("file", to.file)(
        "pts_s", to.pts_s)("source_pts_s", to.source_pts_s)("host", to.host)("capture_clock", to.capture_clock)(
        "capture_unix_ns", to.capture_unix_ns)("capture_monotonic_ns", to.capture_monotonic_ns)(
        "capture_uncertainty_s", to.capture_uncertainty_s)("lag_s", to.lag_s)("publish_unix_ns", to.publish_unix_ns)(
        "width", to.width)("height", to.height)("prompt_id", to.prompt_id)("tracks", to.tracks)(
        "replay", to.replay, false);
}

inline void read(const msgpack::object& from, SkeletonMessage& to) {
    Fields{from}("session", to.session)("source", to.source)("prompt_id", to.prompt_id)(
        "publish_unix_ns", to.publish_unix_ns)("classes", to.classes)("replay", to.replay, false);
}

inline void read(const msgpack::object& from, StatusMessage& to) {
    Fields{from}("session", to.session)("host", to.host)("source", to.source)("state", to.state)(
        "since_unix_ns", to.since_unix_ns)("publish_unix_ns", to.publish_unix_ns)(
        "publish_monotonic_ns", to.publish_monotonic_ns)("frame_rate", to.frame_rate)("lag_s", to.lag_s)(
        "drops", to.drops)("last_error", to.last_error)("last_capture_unix_ns", to.last_capture_unix_ns)(
        "capture_clock", to.capture_clock)("clock_offset_s", to.clock_offset_s)(
        "beat_s", to.beat_s)("reconnects", to.reconnects, std::int64_t{0})("replay", to.replay, false);
}

inline bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

inline std::int64_t unix_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
}

// On Linux, steady_clock is CLOCK_MONOTONIC, the clock of the publisher's monotonic times.
inline std::int64_t monotonic_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

inline double monotonic_s() { return static_cast<double>(monotonic_ns()) / 1e9; }

}  // namespace detail

// The id of this machine's monotonic clock, as in `host`; empty where there is none to compare.
inline const std::string& boot_id() {
    static const std::string id = [] {
        std::string boot, word, seconds, nanoseconds;
        std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
        std::ifstream offsets("/proc/self/timens_offsets");  // a time namespace shifts the monotonic clock
        while (offsets >> word >> seconds >> nanoseconds)
            if (word == "monotonic" && (seconds != "0" || nanoseconds != "0"))
                boot += "+" + seconds + "." + std::string(9 - std::min<std::size_t>(9, nanoseconds.size()), '0') + nanoseconds;
        return boot;
    }();
    return id;
}

// Seconds from the capture of the frame until now: by the monotonic clock on the machine that took the times, else by
// the wall clocks of the two machines.
inline double age_s(const PoseMessage& message) {
    const bool here = !message.host.empty() && message.host == boot_id();
    const auto ns = here ? detail::monotonic_ns() - message.capture_monotonic_ns : detail::unix_ns() - message.capture_unix_ns;
    return static_cast<double>(ns) / 1e9;
}

// Decodes messages into structs that it reuses.
class Decoder {
public:
    PoseMessage pose;
    SkeletonMessage skeleton;
    StatusMessage status;

    // Decodes one ZeroMQ frame into the member that the returned kind names.
    // Throws SchemaError for another schema, WireError for bytes that are no message.
    Kind decode(const char* data, std::size_t size) {
        const auto* end = static_cast<const char*>(size == 0 ? nullptr : std::memchr(data, 0, size));
        const std::string_view topic(data, end ? static_cast<std::size_t>(end - data) : 0);
        const Kind kind = kind_of(topic);
        const std::string_view body(end + 1, size - topic.size() - 1);
        try {
            zone_.clear();
            // No list of a body can have more entries than the body has bytes.
            const msgpack::unpack_limit limit(body.size(), body.size(), body.size(), body.size(), body.size(), 100);
            bool referenced = false;
            const auto keep = [](msgpack::type::object_type, std::size_t, void*) { return true; };
            std::size_t used = 0;
            const auto object = msgpack::unpack(zone_, body.data(), body.size(), used, referenced, keep, nullptr, limit);
            if (used != body.size()) throw WireError(about(topic) + "has bytes after its end");
            check_schema(object, topic);
            if (kind == Kind::pose) detail::read(object, pose);
            if (kind == Kind::skeleton) detail::read(object, skeleton);
            if (kind == Kind::status) detail::read(object, status);
        } catch (const msgpack::unpack_error& error) {
            throw WireError(about(topic) + "is not msgpack: " + error.what());
        } catch (const msgpack::type_error&) {
            throw WireError(about(topic) + "has a field of another type");
        }
        return kind;
    }

private:
    static std::string about(std::string_view topic) { return "the body of a message on '" + std::string(topic) + "' "; }

    static Kind kind_of(std::string_view topic) {
        if (detail::starts_with(topic, "poses/")) return Kind::pose;
        if (detail::starts_with(topic, "skeletons/")) return Kind::skeleton;
        if (detail::starts_with(topic, "status/")) return Kind::status;
        throw WireError("expected a topic such as 'poses/cam1' and a NUL byte");
    }

    static void check_schema(const msgpack::object& object, std::string_view topic) {
        std::int64_t got = 0;
        detail::Fields{object}("schema", got);
        if (got != schema)
            throw SchemaError("message of schema " + std::to_string(got) + " on '" + std::string(topic) +
                              "', but this client reads schema " + std::to_string(schema) +
                              ": take the client that belongs to the publisher");
    }

    msgpack::zone zone_;
};

// A pose message and what is known about it on receipt.
struct Received {
    PoseMessage message;
    double age_s = 0;          // capture to receipt
    std::int64_t missed = 0;   // messages of this source that were lost just before this one
    bool restarted = false;    // the first message after a restart of the publisher
};

// A new state of a source: "connecting", "live", "late", "lost", "ended" as the publisher says, or "silent".
struct SourceState {
    std::string source, state;
};

enum class Event { none, pose, state };

struct Options {
    std::string source;     // receive this source alone; empty for all
    bool conflate = false;  // keep the newest pose message only; give `source` where there are several
    // CURVE: the publisher's public key and this client's pair, 40 characters each; empty for none.
    std::string server_key, public_key, secret_key;
};

class Subscriber {
public:
    // Throws zmq::error_t for a malformed endpoint or key.
    explicit Subscriber(const std::string& endpoint, const Options& options = {})
        : poses_(connect(endpoint, options, options.conflate, {"poses/"})),
          side_(connect(endpoint, options, false, {"skeletons/", "status/"})) {}

    // Waits for the next pose message; returns false if none comes within `timeout_s`. States are taken meanwhile.
    bool receive(Received& pose, double timeout_s = std::numeric_limits<double>::infinity()) {
        const double deadline_s = detail::monotonic_s() + timeout_s;
        for (SourceState state;;) {
            const Event event = next(pose, state, deadline_s);
            if (event != Event::state) return event == Event::pose;
        }
    }

    // Waits for a pose message or a change of state, whichever comes first.
    // Both throw SchemaError if the publisher speaks another schema, WireError if it is none of ours.
    Event receive_event(Received& pose, SourceState& state, double timeout_s = std::numeric_limits<double>::infinity()) {
        return next(pose, state, detail::monotonic_s() + timeout_s);
    }

    // Whether the publisher is heard: a status message came within its beat. False before the first.
    bool alive() {
        take_side();
        const double now_s = detail::monotonic_s();
        return any_of([&](const Source& source) { return now_s < source.silent_from_s; });
    }

    // Whether any source is late: its newest picture is older than the publisher's age budget.
    bool late() {
        take_side();
        const double now_s = detail::monotonic_s();
        return any_of([&](const Source& source) { return source.state(now_s) == "late"; });
    }

    // The state of a source; "silent" where the publisher is not heard any more, "unknown" before its first status.
    std::string state(const std::string& source) {
        take_side();
        const auto known = sources_.find(source);
        return known == sources_.end() ? "unknown" : known->second.state(detail::monotonic_s());
    }

    // The last status message of a source; null before the first.
    const StatusMessage* status(const std::string& source) {
        take_side();
        const auto known = sources_.find(source);
        return known == sources_.end() ? nullptr : &known->second.status;
    }

    // Names and edges of the keypoints of `message`; null while its skeleton message is on its way.
    const SkeletonMessage* skeleton(const PoseMessage& message) {
        take_side();
        const auto known = skeletons_.find(message.source);
        const bool fits = known != skeletons_.end() && known->second.session == message.session &&
                          known->second.prompt_id == message.prompt_id;
        return fits ? &known->second : nullptr;
    }

    std::int64_t received() const { return received_; }
    std::int64_t missed() const { return missed_; }
    std::int64_t restarts() const { return restarts_; }

private:
    // The last status of one source, and when it must have come (python/xpose_client/states.py says how).
    struct Source {
        StatusMessage status;
        double offset_s = 0, read_s = 0, silent_from_s = 0;
        std::string reported;

        std::string state(double now_s) const {
            return status.state != "ended" && now_s >= silent_from_s ? "silent" : status.state;
        }
    };

    struct Last {
        std::int64_t session = 0, seq = 0;
    };

    static constexpr double beats_until_silent = 1.8, drift = 0.001;
    static constexpr std::size_t most_changes = 1000;

    static zmq::context_t& context() {
        static zmq::context_t shared;
        return shared;
    }

    static zmq::socket_t connect(const std::string& endpoint, const Options& options, bool conflate,
                                 const std::vector<std::string>& prefixes) {
        zmq::socket_t socket(context(), zmq::socket_type::sub);
        socket.set(zmq::sockopt::conflate, conflate);
        socket.set(zmq::sockopt::linger, 0);
        socket.set(zmq::sockopt::reconnect_ivl_max, 1000);  // ms
        socket.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos);
        if (!options.server_key.empty()) {
            socket.set(zmq::sockopt::curve_serverkey, options.server_key);
            socket.set(zmq::sockopt::curve_publickey, options.public_key);
            socket.set(zmq::sockopt::curve_secretkey, options.secret_key);
        }
        for (const auto& prefix : prefixes) {
            const std::string exact = options.source.empty() ? "" : options.source + std::string(1, '\0');
            socket.set(zmq::sockopt::subscribe, prefix + exact);
        }
        socket.connect(endpoint);
        return socket;
    }

    template <class Test>
    bool any_of(Test test) const {
        return std::any_of(sources_.begin(), sources_.end(), [&](const auto& entry) { return test(entry.second); });
    }

    Event next(Received& pose, SourceState& state, double deadline_s) {
        for (;;) {
            take_side();
            const double now_s = detail::monotonic_s();
            double wake_s = deadline_s;
            for (auto& [name, source] : sources_) {
                if (source.state(now_s) == "silent") report(source, "silent");
                if (source.reported != "silent" && source.reported != "ended") wake_s = std::min(wake_s, source.silent_from_s);
            }
            if (!changes_.empty()) {
                state = std::move(changes_.front());
                changes_.pop_front();
                return Event::state;
            }
            if (take_pose(pose)) return Event::pose;
            if (now_s >= deadline_s) return Event::none;
            std::array<zmq::pollitem_t, 2> items{{{poses_.handle(), 0, ZMQ_POLLIN, 0}, {side_.handle(), 0, ZMQ_POLLIN, 0}}};
            const double wait_ms = std::ceil(std::max(0.0, wake_s - now_s) * 1000);
            zmq::poll(items.data(), items.size(), std::chrono::milliseconds(wait_ms < 1e9 ? static_cast<long>(wait_ms) : -1));
        }
    }

    void take_side() {
        while (side_.recv(frame_, zmq::recv_flags::dontwait)) {
            const Kind kind = decoder_.decode(frame_.data<char>(), frame_.size());
            if (kind == Kind::skeleton) skeletons_[decoder_.skeleton.source] = decoder_.skeleton;
            if (kind == Kind::status) take_status(decoder_.status);
        }
    }

    void take_status(const StatusMessage& status) {
        const double now_s = detail::monotonic_s();
        const double sent_s = static_cast<double>(status.publish_monotonic_ns) / 1e9;
        const auto [entry, is_new] = sources_.try_emplace(status.source);
        Source& source = entry->second;
        if (!is_new && source.status.session == status.session &&
            status.publish_monotonic_ns <= source.status.publish_monotonic_ns)
            return;  // a repeat for a late joiner
        double offset_s = now_s - sent_s;
        if (!status.host.empty() && status.host == boot_id())
            offset_s = 0;
        else if (!is_new && source.status.host == status.host)
            offset_s = std::min(offset_s, source.offset_s + drift * (now_s - source.read_s));
        source.offset_s = offset_s;
        source.read_s = now_s;
        source.silent_from_s = sent_s + offset_s + beats_until_silent * status.beat_s;
        source.status = status;
        report(source, status.state);
    }

    void report(Source& source, const std::string& state) {
        if (source.reported == state) return;
        source.reported = state;
        if (changes_.size() == most_changes) changes_.pop_front();
        changes_.push_back({source.status.source, state});
    }

    bool take_pose(Received& pose) {
        while (poses_.recv(frame_, zmq::recv_flags::dontwait)) {
            std::swap(decoder_.pose, pose.message);  // the caller's buffers are filled, and handed back below
            decoder_.decode(frame_.data<char>(), frame_.size());
            std::swap(decoder_.pose, pose.message);
            const PoseMessage& message = pose.message;
            const auto [entry, is_new] = last_.try_emplace(message.source, Last{message.session, message.seq - 1});
            Last& last = entry->second;
            const bool restarted = last.session != message.session;
            if (restarted) last = {message.session, -1};
            if (message.seq <= last.seq) continue;  // a repeat for a late joiner
            pose.missed = message.seq - last.seq - 1;
            pose.restarted = restarted;
            pose.age_s = age_s(message);
            last.seq = message.seq;
            ++received_;
            missed_ += pose.missed;
            restarts_ += restarted;
            return true;
        }
        return false;
    }

    zmq::socket_t poses_, side_;
    zmq::message_t frame_;
    Decoder decoder_;
    std::map<std::string, SkeletonMessage> skeletons_;
    std::map<std::string, Source> sources_;
    std::map<std::string, Last> last_;
    std::deque<SourceState> changes_;
    std::int64_t received_ = 0, missed_ = 0, restarts_ = 0;
};

}  // namespace xpose

#endif
