//! A key-value store in a table of DynamoDB.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{DisplayErrorContext, SdkError};
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ReturnValue,
    ScalarAttributeType, TimeToLiveSpecification,
};
use stepwell_core::{Timestamp, async_trait};

use super::{KeyValueError, KeyValueStore, Pattern};

const STORE: &str = "DynamoDB";
/// The maximum size of a key and a value, in bytes: DynamoDB's limit without the attributes' names.
const ITEM_BYTES: usize = 400 * 1024 - 64;
/// The attributes of an item: the partition key, the value, and the end of its time to live. The
/// end is in seconds since 1970, because DynamoDB's automatic removal requires that unit.
const KEY: &str = "pk";
const VALUE: &str = "value";
const TTL: &str = "ttl";
/// The condition that an item is not expired. DynamoDB removes expired items within days.
const ALIVE: &str = "(attribute_not_exists(#ttl) OR #ttl > :now)";

/// A key-value store in a table of DynamoDB whose partition key is the string `pk`. The value is in
/// the attribute `value`. Times to live use this machine's clock, and are rounded up to seconds.
/// The ends of the times to live are in the attribute `ttl`, by which the table can remove expired
/// items. Reads are strongly consistent. A value must be shorter than 400 KB.
///
/// ```no_run
/// # use aws_sdk_dynamodb::Client;
/// # use stepwell_checkpoint::key_value::{DynamoDb, KeyValueError};
/// # async fn example(client: Client) -> Result<(), KeyValueError> {
/// // `client` is made with the crate aws-config:
/// // `Client::new(&aws_config::load_from_env().await)`.
/// let store = DynamoDb::new(client, "checkpoints");
/// store.create_table().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DynamoDb {
    client: Client,
    table: String,
}

impl DynamoDb {
    /// Returns a store in a table that exists.
    pub fn new(client: Client, table: impl Into<String>) -> Self {
        Self { client, table: table.into() }
    }

    /// Creates the table if it does not exist, with payment by request and automatic removal of
    /// expired items. The call returns when the table is ready.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the table cannot be created.
    pub async fn create_table(&self) -> Result<(), KeyValueError> {
        const ACTION: &str = "create the table";
        let built = |error: aws_sdk_dynamodb::error::BuildError| {
            KeyValueError::failed(STORE, ACTION, error)
        };
        let key = KeySchemaElement::builder().attribute_name(KEY).key_type(KeyType::Hash).build();
        let attribute = AttributeDefinition::builder().attribute_name(KEY);
        let attribute = attribute.attribute_type(ScalarAttributeType::S).build();
        let create = self.client.create_table().table_name(&self.table);
        let create = create.billing_mode(BillingMode::PayPerRequest);
        let create =
            create.key_schema(key.map_err(built)?).attribute_definitions(attribute.map_err(built)?);
        match create.send().await {
            Err(SdkError::ServiceError(error)) if error.err().is_resource_in_use_exception() => {}
            other => _ = other.map_err(failed(ACTION))?,
        }
        loop {
            let table = self.client.describe_table().table_name(&self.table).send().await;
            let table = table.map_err(failed(ACTION))?.table;
            match table.and_then(|table| table.table_status) {
                Some(status) if status.as_str() == "ACTIVE" => break,
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        let removal = self.client.describe_time_to_live().table_name(&self.table).send().await;
        let removal = removal.map_err(failed(ACTION))?.time_to_live_description;
        if removal.is_none_or(|removal| removal.attribute_name.is_none()) {
            let on = TimeToLiveSpecification::builder().enabled(true).attribute_name(TTL).build();
            let on = self
                .client
                .update_time_to_live()
                .table_name(&self.table)
                .time_to_live_specification(on.map_err(built)?);
            on.send().await.map_err(failed(ACTION))?;
        }
        Ok(())
    }

    fn item(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<HashMap<String, AttributeValue>, KeyValueError> {
        let bytes = key.len() + value.len();
        if bytes > ITEM_BYTES {
            return Err(KeyValueError::TooLarge {
                store: STORE,
                key: key.into(),
                bytes,
                limit: ITEM_BYTES,
            });
        }
        let mut item = HashMap::from([(KEY.into(), text(key)), (VALUE.into(), text(value))]);
        if let Some(ttl) = ttl {
            let ends = now().saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
            item.insert(TTL.into(), number(ends.saturating_add(1)));
        }
        Ok(item)
    }
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: i64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

fn is_alive(item: &HashMap<String, AttributeValue>) -> bool {
    let ends = item.get(TTL).and_then(|ttl| ttl.as_n().ok()?.parse::<i64>().ok());
    ends.is_none_or(|ends| ends > now())
}

fn failed<E: std::error::Error>(action: &'static str) -> impl Fn(E) -> KeyValueError {
    // The SDK's errors describe the cause in their sources.
    move |error| KeyValueError::failed(STORE, action, DisplayErrorContext(&error))
}

#[async_trait]
impl KeyValueStore for DynamoDb {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        let get = self
            .client
            .get_item()
            .table_name(&self.table)
            .key(KEY, text(key))
            .consistent_read(true);
        let item = get.send().await.map_err(failed("get"))?.item;
        let Some(mut item) = item.filter(is_alive) else { return Ok(None) };
        match item.remove(VALUE) {
            Some(AttributeValue::S(value)) => Ok(Some(value)),
            _ => Err(KeyValueError::Foreign {
                store: STORE,
                key: key.into(),
                reason: format!("the attribute {VALUE:?} is not a string"),
            }),
        }
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        let item = self.item(key, value, ttl)?;
        let put = self.client.put_item().table_name(&self.table).set_item(Some(item));
        put.send().await.map_err(failed("set"))?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        let delete = self.client.delete_item().table_name(&self.table).key(KEY, text(key));
        let deleted =
            delete.return_values(ReturnValue::AllOld).send().await.map_err(failed("delete"))?;
        Ok(deleted.attributes.is_some_and(|item| is_alive(&item)))
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.get(key).await?.is_some())
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        let pattern = Pattern::new(pattern);
        let scan = self.client.scan().table_name(&self.table).consistent_read(true);
        let scan = scan.projection_expression("#pk, #ttl").expression_attribute_names("#pk", KEY);
        let scan = scan.expression_attribute_names("#ttl", TTL);
        let mut pages = match pattern.prefix() {
            // DynamoDB refuses a condition on the empty string.
            "" => scan,
            prefix => scan
                .filter_expression("begins_with(#pk, :prefix)")
                .expression_attribute_values(":prefix", text(prefix)),
        }
        .into_paginator()
        .send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let items = page.map_err(failed("list keys"))?.items.unwrap_or_default();
            let found = items.into_iter().filter(is_alive).filter_map(|mut item| item.remove(KEY));
            let found = found.filter_map(|key| match key {
                AttributeValue::S(key) => Some(key),
                _ => None,
            });
            keys.extend(found.filter(|key| pattern.matches(key)));
        }
        Ok(keys)
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        const ACTION: &str = "compare and set";
        let (condition, names) = match expected {
            Some(_) => {
                (format!("#value = :expected AND {ALIVE}"), vec![("#value", VALUE), ("#ttl", TTL)])
            }
            None => (
                format!("attribute_not_exists(#pk) OR NOT {ALIVE}"),
                vec![("#pk", KEY), ("#ttl", TTL)],
            ),
        };
        let names =
            names.into_iter().map(|(name, attribute)| (name.to_owned(), attribute.to_owned()));
        let mut values = HashMap::from([(":now".to_owned(), number(now()))]);
        values.extend(expected.map(|expected| (":expected".to_owned(), text(expected))));
        let Some(new) = new else {
            if expected.is_none() {
                return Ok(!self.exists(key).await?);
            }
            let delete = self.client.delete_item().table_name(&self.table).key(KEY, text(key));
            let delete = delete.condition_expression(condition);
            let delete = delete.set_expression_attribute_names(Some(names.collect()));
            return match delete.set_expression_attribute_values(Some(values)).send().await {
                Ok(_) => Ok(true),
                Err(SdkError::ServiceError(error))
                    if matches!(
                        error.err(),
                        DeleteItemError::ConditionalCheckFailedException(_)
                    ) =>
                {
                    Ok(false)
                }
                Err(error) => Err(failed(ACTION)(error)),
            };
        };
        let put = self.client.put_item().table_name(&self.table).condition_expression(condition);
        let put = put.set_expression_attribute_names(Some(names.collect()));
        let put = put.set_expression_attribute_values(Some(values));
        match put.set_item(Some(self.item(key, new, ttl)?)).send().await {
            Ok(_) => Ok(true),
            Err(SdkError::ServiceError(error))
                if matches!(error.err(), PutItemError::ConditionalCheckFailedException(_)) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(ACTION)(error)),
        }
    }
}
