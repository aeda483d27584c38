//! What visitors and machines do in the shop: call trees with chances and repetitions.
//!
//! Owns who calls whom. Does not own how a call looks as a span (`template`) or when it happens (`generate`).

use super::shop::{SERVICES, service_number};
use super::template::{Op, Template};

/// How a call relates to its caller and to the calls after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The next call starts when this one ends.
    Sequential,
    /// Starts with the calls next to it; the caller waits for the slowest.
    Parallel,
    /// Starts later and nobody waits: a message.
    Detached,
}

/// A call in the tree; `template` is an index into [`Shop::templates`].
#[derive(Debug)]
pub(super) struct Node {
    pub template: usize,
    pub children: Vec<Node>,
    /// Percent.
    pub chance: u8,
    pub repeat: (u32, u32),
    pub mode: Mode,
}

#[derive(Debug)]
pub(super) struct Shop {
    pub templates: Vec<Template>,
    /// Roots; `weights` are running sums of how often each happens.
    pub flows: Vec<Node>,
    pub weights: Vec<u32>,
}

struct Call {
    op: Op,
    /// None: the service of the caller.
    service: Option<&'static str>,
    children: Vec<Call>,
    chance: u8,
    repeat: (u32, u32),
    mode: Mode,
    own_us: Option<(u32, u32)>,
}

impl Call {
    fn chance(mut self, percent: u8) -> Self {
        self.chance = percent;
        self
    }

    fn repeat(mut self, min: u32, max: u32) -> Self {
        self.repeat = (min, max);
        self
    }

    fn parallel(mut self) -> Self {
        self.mode = Mode::Parallel;
        self
    }

    fn takes_ms(mut self, min: u32, more: u32) -> Self {
        self.own_us = Some((min * 1000, more * 1000));
        self
    }

    fn with(mut self, children: Vec<Call>) -> Self {
        self.children = children;
        self
    }
}

fn call(op: Op, service: Option<&'static str>, children: Vec<Call>) -> Call {
    Call { op, service, children, chance: 100, repeat: (1, 1), mode: Mode::Sequential, own_us: None }
}

/// A request of a browser.
fn visit(method: &'static str, route: &'static str, children: Vec<Call>) -> Call {
    call(Op::HttpServer { method, route }, Some("frontend"), children)
}

/// A client span here, a server span there.
fn http(target: &'static str, method: &'static str, route: &'static str, children: Vec<Call>) -> Call {
    let server = call(Op::HttpServer { method, route }, Some(target), children);
    call(Op::HttpClient { method, route, target: number(target) }, None, vec![server])
}

fn grpc(target: &'static str, service: &'static str, method: &'static str, children: Vec<Call>) -> Call {
    let server = call(Op::GrpcServer { service, method }, Some(target), children);
    call(Op::GrpcClient { service, method, target: number(target) }, None, vec![server])
}

fn sql(operation: &'static str, table: &'static str, text: &'static str) -> Call {
    call(Op::Sql { operation, table, text }, None, vec![])
}

fn cache(command: &'static str, key: &'static str) -> Call {
    call(Op::Cache { command, key }, None, vec![])
}

fn work(name: &'static str) -> Call {
    call(Op::Work { name }, None, vec![])
}

/// A message and those who handle it, later.
fn message(topic: &'static str, consumers: Vec<(&'static str, Vec<Call>)>) -> Call {
    let consume = |(service, children)| {
        let mut consumer = call(Op::Consume { topic }, Some(service), children);
        consumer.mode = Mode::Detached;
        consumer
    };
    call(Op::Produce { topic }, None, consumers.into_iter().map(consume).collect())
}

fn number(service: &str) -> usize {
    service_number(service).unwrap_or_default()
}

fn session() -> Call {
    grpc("auth", "shop.auth.v1.Sessions", "Check", vec![cache("GET", "session"), work("verify_token").chance(30)])
}

fn product_details() -> Call {
    grpc(
        "catalogue",
        "shop.catalogue.v1.Catalogue",
        "GetProduct",
        vec![
            cache("GET", "product"),
            sql("SELECT", "products", "SELECT id, name, description, price_cents, picture FROM products WHERE id = $1")
                .chance(25),
        ],
    )
}

fn prices() -> Call {
    http(
        "pricing",
        "POST",
        "/v1/quotes",
        vec![
            work("apply_rules"),
            sql("SELECT", "price_rules", "SELECT rule, percent FROM price_rules WHERE sku = ANY($1) AND valid @> now()")
                .chance(40),
            grpc("currency", "shop.currency.v1.Currency", "Convert", vec![]).chance(35),
        ],
    )
}

fn flows() -> Vec<(u32, Call)> {
    vec![
        (220, visit("GET", "/", vec![
            session(),
            grpc("ad", "shop.ad.v1.Ads", "Pick", vec![work("rank_ads")]).parallel().chance(70),
            grpc("recommendation", "shop.recommendation.v1.Recommendations", "List", vec![work("rank"), cache("MGET", "features")]).parallel(),
            product_details().parallel().repeat(1, 4),
            work("render"),
        ])),
        (300, visit("GET", "/product/{id}", vec![
            session(),
            product_details().parallel(),
            http("review", "GET", "/v2/products/{id}/reviews", vec![
                sql("SELECT", "reviews", "SELECT author, stars, body, created_at FROM reviews WHERE product_id = $1 ORDER BY created_at DESC LIMIT 20"),
            ]).parallel(),
            http("inventory", "GET", "/stock/{id}", vec![cache("GET", "stock"), sql("SELECT", "stock", "SELECT warehouse, quantity FROM stock WHERE sku = $1").chance(30)]).parallel(),
            prices().parallel(),
            work("render"),
        ])),
        (150, visit("GET", "/search", vec![
            session(),
            http("search", "POST", "/query", vec![
                work("parse_query"),
                work("search_shard").parallel().repeat(3, 8).takes_ms(2, 60),
                work("merge_hits"),
                sql("INSERT", "query_log", "INSERT INTO query_log (terms, hits, took_ms) VALUES ($1, $2, $3)").chance(20),
            ]),
            product_details().parallel().repeat(2, 6),
            prices().chance(60),
        ])),
        (110, visit("POST", "/cart/items", vec![
            session(),
            grpc("cart", "shop.cart.v1.Cart", "AddItem", vec![
                cache("HGET", "cart"), product_details(), cache("HSET", "cart"),
                message("cart-events", vec![("recommendation", vec![work("update_features"), cache("SET", "features")])]),
            ]),
            prices(),
        ])),
        (90, visit("GET", "/cart", vec![
            session(),
            grpc("cart", "shop.cart.v1.Cart", "Get", vec![cache("HGETALL", "cart")]),
            product_details().parallel().repeat(1, 8),
            prices(),
            grpc("shipping", "shop.shipping.v1.Shipping", "Estimate", vec![work("tariff"), cache("GET", "tariff")]),
        ])),
        (60, visit("POST", "/checkout", vec![
            session(),
            grpc("checkout", "shop.checkout.v1.Checkout", "PlaceOrder", vec![
                grpc("cart", "shop.cart.v1.Cart", "Get", vec![cache("HGETALL", "cart")]),
                product_details().parallel().repeat(1, 6),
                prices(),
                http("inventory", "POST", "/reservations", vec![
                    sql("UPDATE", "stock", "UPDATE stock SET reserved = reserved + $2 WHERE sku = $1 AND quantity - reserved >= $2").repeat(1, 6),
                ]),
                grpc("shipping", "shop.shipping.v1.Shipping", "Quote", vec![work("tariff")]),
                http("payment", "POST", "/charges", vec![
                    http("fraud", "POST", "/score", vec![work("load_model_input"), cache("MGET", "velocity"), work("infer")]),
                    work("call_acquirer").takes_ms(40, 400),
                    sql("INSERT", "charges", "INSERT INTO charges (order_id, amount_cents, currency, acquirer_ref) VALUES ($1, $2, $3, $4)"),
                ]),
                http("order", "POST", "/orders", vec![
                    sql("INSERT", "orders", "INSERT INTO orders (id, user_id, total_cents, currency, created_at) VALUES ($1, $2, $3, $4, now())"),
                    sql("INSERT", "order_lines", "INSERT INTO order_lines (order_id, sku, quantity, price_cents) VALUES ($1, $2, $3, $4)").repeat(1, 8),
                    message("orders", vec![
                        ("mail", vec![work("render_mail"), work("smtp_send").takes_ms(30, 300)]),
                        ("warehouse", vec![sql("INSERT", "picks", "INSERT INTO picks (order_id, bay, sku) VALUES ($1, $2, $3)").repeat(1, 6)]),
                        ("notification", vec![work("push").takes_ms(10, 120)]),
                        ("analytics", vec![work("enrich"), work("append")]),
                    ]),
                ]),
                grpc("cart", "shop.cart.v1.Cart", "Empty", vec![cache("DEL", "cart")]),
            ]),
        ])),
        (70, visit("POST", "/login", vec![
            http("account", "POST", "/v1/credentials/verify", vec![
                sql("SELECT", "accounts", "SELECT id, password_hash, locked_until FROM accounts WHERE lower(email) = lower($1)"),
                work("argon2").takes_ms(40, 60),
            ]),
            grpc("auth", "shop.auth.v1.Sessions", "Create", vec![cache("SETEX", "session")]),
        ])),
        (40, visit("GET", "/account/orders/{id}", vec![
            session(),
            http("order", "GET", "/orders/{id}", vec![
                sql("SELECT", "orders", "SELECT * FROM orders WHERE id = $1"),
                sql("SELECT", "order_lines", "SELECT sku, quantity, price_cents FROM order_lines WHERE order_id = $1 ORDER BY line"),
            ]),
            grpc("shipping", "shop.shipping.v1.Shipping", "Track", vec![]).chance(70),
        ])),
        // Machines: a consumer that takes messages in batches, a nightly report, a reindexing that goes on for minutes.
        (12, call(Op::ConsumeBatch { topic: "orders" }, Some("analytics"), vec![
            work("decode").repeat(4, 20),
            sql("COPY", "order_facts", "COPY order_facts FROM STDIN WITH (FORMAT binary)"),
        ])),
        (2, call(Op::Work { name: "nightly_report" }, Some("report"), vec![
            sql("SELECT", "order_facts", "SELECT day, sku, sum(quantity), sum(price_cents) FROM order_facts WHERE day = $1 GROUP BY 1, 2").takes_ms(2_000, 9_000),
            work("render_page").repeat(30, 160).takes_ms(20, 110),
            message("mail-requests", vec![("mail", vec![work("smtp_send").takes_ms(30, 300)])]),
        ])),
        (2, call(Op::Work { name: "reindex" }, Some("search"), vec![
            http("catalogue", "GET", "/export/{id}", vec![sql("SELECT", "products", "SELECT * FROM products WHERE id > $1 ORDER BY id LIMIT 500")])
                .with_children_of_both()
                .repeat(60, 140),
        ])),
    ]
}

impl Call {
    /// Each page is followed by writing it: a wider tree than a request has.
    fn with_children_of_both(self) -> Self {
        let write = work("write_segment").takes_ms(15, 90);
        work("reindex_page").with(vec![self, write])
    }
}

impl Shop {
    pub(super) fn open() -> Self {
        let mut shop = Self { templates: Vec::new(), flows: Vec::new(), weights: Vec::new() };
        let mut sum = 0;
        for (weight, root) in flows() {
            sum += weight;
            shop.weights.push(sum);
            let node = shop.lower(root, 0);
            shop.flows.push(node);
        }
        shop
    }

    fn lower(&mut self, call: Call, caller: usize) -> Node {
        let service = call.service.map_or(caller, number);
        debug_assert!(service < SERVICES.len());
        let template = self.templates.len();
        self.templates.push(Template::new(call.op, service, call.own_us));
        let children = call.children.into_iter().map(|child| self.lower(child, service)).collect();
        Node { template, children, chance: call.chance, repeat: call.repeat, mode: call.mode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_takes_part() {
        fn names(call: &Call, out: &mut Vec<&'static str>) {
            out.extend(call.service);
            call.children.iter().for_each(|child| names(child, out));
        }
        let mut used = Vec::new();
        flows().iter().for_each(|(_, root)| names(root, &mut used));
        for service in SERVICES {
            assert!(used.contains(&service.name), "{} does nothing", service.name);
        }
        for name in used {
            assert!(service_number(name).is_some(), "{name} is no service");
        }
    }
}
