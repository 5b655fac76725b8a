// The WebSocket to the monitor: states as text, pictures with their messages as binary. It reconnects by itself.

const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 4000;
const SILENT_MS = 4000; // the monitor sends its status twice a second

export class Connection {
  /**
   * @param on.status called with each status of the pipeline.
   * @param on.picture called with each picture: {source, age_s, message, skeleton, jpeg}; may return a promise.
   * @param on.change called with true and false when the connection comes and goes.
   */
  constructor(on) {
    this.on = on;
    this.wanted = [];
    this.waitMs = FIRST_WAIT_MS;
    this.heardMs = performance.now();
    this.open();
    setInterval(() => this.#watch(), 1000);
  }

  open() {
    const secure = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${secure}://${location.host}/live`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.heardMs = performance.now();
      this.#send({ look: this.wanted });
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = () => this.#closed(socket);
    this.socket = socket;
  }

  /** Ask for the pictures of these sources and of no others. */
  look(names) {
    if (names.length === this.wanted.length && names.every((name, index) => name === this.wanted[index])) return;
    this.wanted = names;
    this.#send({ look: names });
  }

  #send(request) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(request));
  }

  async #receive(data) {
    this.heardMs = performance.now();
    if (typeof data === "string") {
      this.waitMs = FIRST_WAIT_MS;
      this.on.change(true);
      this.on.status(JSON.parse(data));
      return;
    }
    const length = new DataView(data).getUint32(0);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    try {
      await this.on.picture({ ...head, jpeg: new Uint8Array(data, 4 + length) });
    } finally {
      this.#send({ seen: head.source }); // the monitor sends the next picture once this one is drawn
    }
  }

  /** A connection can end without any event, for example when a computer sleeps. */
  #watch() {
    if (this.socket.readyState === WebSocket.OPEN && performance.now() - this.heardMs > SILENT_MS) {
      this.socket.close();
      this.#closed(this.socket);
    }
  }

  #closed(socket) {
    if (socket !== this.socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    this.socket = { readyState: WebSocket.CLOSED };
    this.on.change(false);
    setTimeout(() => this.open(), this.waitMs * (0.75 + Math.random() / 2));
    this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
  }
}

/** Send a request that changes something; return {done} or {error}, a sentence each. */
export async function ask(path, body) {
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return await answer.json();
  } catch {
    return { error: "The pipeline does not answer. It is not known whether the change was made." };
  }
}
