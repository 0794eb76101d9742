import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Instant;
import java.time.ZoneId;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * One tag in Kafka Streams, exactly once: what bench_pipeline.py compares with.
 *
 * <p>high_repurchase holds with an order on each of the last 30 local days and more than two
 * orders in 90 days other than the first ever. A user is a JSON object in RocksDB with a
 * changelog, read and written at every order; a change of the tag is a JSON object too. No other
 * feature, no deadlines (the tag leaves with the next order), no repeats, no churn.
 *
 * <p>java HighRepurchase SERVERS APPLICATION SOURCE CHANGES STATE_DIR; says "running" when it is.
 */
public final class HighRepurchase {
    private static final ZoneId ZONE = ZoneId.of("Asia/Shanghai");
    private static final int WINDOW_DAYS = 90;
    private static final ObjectMapper JSON =
            new ObjectMapper().configure(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES, false);

    public static final class Event {
        public String event_id;
        public String user_id;
        public String type;
        public long ts;
    }

    public static final class User {
        public TreeMap<Integer, Integer> orders = new TreeMap<>(); // of each day in the window
        public int firstDay = Integer.MAX_VALUE;
        public int runDay; // first day of the run that ends on the last day
        public long clock;
        public boolean tag;

        /** Take an order in; whether the tag changed. */
        boolean order(long ts) {
            int day = day(ts);
            if (orders.isEmpty() || day > orders.lastKey() + 1) {
                runDay = day;
            }
            orders.merge(day, 1, Integer::sum);
            if (day == runDay - 1) {
                runDay = day; // a late order
            }
            while (orders.containsKey(runDay - 1)) {
                runDay--; // which joined two runs
            }
            firstDay = Math.min(firstDay, day);
            clock = Math.max(clock, ts);
            int today = day(clock);
            orders.headMap(today - WINDOW_DAYS, true).clear();
            boolean before = tag;
            tag = streak(today) >= 30 && repurchases(today) > 2;
            return tag != before;
        }

        int streak(int today) {
            return today > orders.lastKey() + 1 ? 0 : orders.lastKey() - runDay + 1;
        }

        int repurchases(int today) {
            int sum = 0;
            for (int count : orders.values()) {
                sum += count;
            }
            return firstDay > today - WINDOW_DAYS ? sum - 1 : sum;
        }

        private static int day(long ms) {
            return (int) Instant.ofEpochMilli(ms).atZone(ZONE).toLocalDate().toEpochDay();
        }
    }

    private static final class Tagger implements Processor<String, Event, String, Map<String, Object>> {
        private ProcessorContext<String, Map<String, Object>> context;
        private KeyValueStore<String, User> users;

        @Override
        public void init(ProcessorContext<String, Map<String, Object>> context) {
            this.context = context;
            users = context.getStateStore("users");
        }

        @Override
        public void process(Record<String, Event> record) {
            Event event = record.value();
            if (!event.type.equals("order")) {
                return;
            }
            User user = users.get(event.user_id);
            if (user == null) {
                user = new User();
            }
            boolean changed = user.order(event.ts);
            users.put(event.user_id, user);
            if (changed) {
                Map<String, Object> change = Map.of(
                        "user_id", event.user_id,
                        "tag", "high_repurchase",
                        "value", user.tag,
                        "effective_at", Instant.ofEpochMilli(user.clock).atZone(ZONE).toString(),
                        "event_id", event.event_id);
                context.forward(record.withValue(change));
            }
        }
    }

    private static <T> Serializer<T> written() {
        return (topic, value) -> {
            try {
                return value == null ? null : JSON.writeValueAsBytes(value);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
    }

    private static <T> Deserializer<T> read(Class<T> type) {
        return (topic, bytes) -> {
            try {
                return bytes == null ? null : JSON.readValue(bytes, type);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
    }

    public static void main(String[] arguments) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[1]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[4]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 250);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 128L << 20);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");

        Serde<User> user = Serdes.serdeFrom(written(), read(User.class));
        Topology topology = new Topology();
        topology.addSource("events", Serdes.String().deserializer(), read(Event.class), arguments[2]);
        topology.addProcessor("tag", Tagger::new, "events");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(
                                Stores.persistentKeyValueStore("users"), Serdes.String(), user)
                        .withCachingEnabled(),
                "tag");
        topology.addSink("changes", arguments[3], Serdes.String().serializer(), written(), "tag");

        KafkaStreams streams = new KafkaStreams(topology, settings);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.RUNNING) {
                System.out.println("running");
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
