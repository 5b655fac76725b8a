// Reads a recording with npm's @mcap/core and prints what it found: node read_mcap.js FILE
const { McapIndexedReader } = require("@mcap/core");
const { decompress } = require("fzstd");
const { open } = require("fs/promises");

async function main() {
  const file = await open(process.argv[2], "r");
  const readable = {
    size: async () => BigInt((await file.stat()).size),
    read: async (offset, length) => {
      const bytes = new Uint8Array(Number(length));
      await file.read(bytes, 0, Number(length), Number(offset));
      return bytes;
    },
  };
  const decompressHandlers = { zstd: (data, size) => decompress(data, new Uint8Array(Number(size))) };
  const reader = await McapIndexedReader.Initialize({ readable, decompressHandlers });
  const topics = {};
  for (const channel of reader.channelsById.values()) {
    topics[channel.topic] = { schema: reader.schemasById.get(channel.schemaId).name, messages: 0, first: null };
  }
  for await (const message of reader.readMessages()) {
    const channel = reader.channelsById.get(message.channelId);
    const topic = topics[channel.topic];
    topic.messages += 1;
    if (channel.messageEncoding === "json") topic.first ??= JSON.parse(new TextDecoder().decode(message.data));
  }
  const metadata = {};
  for await (const record of reader.readMetadata()) metadata[record.name] = Object.fromEntries(record.metadata);
  console.log(JSON.stringify({ topics, metadata }));
  await file.close();
}

main();
