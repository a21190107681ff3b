-- The table for zones.csv, which is the list of the world's time zones from the tz database (public
-- domain).
CREATE TABLE zones (
    zone      TEXT PRIMARY KEY,
    countries TEXT NOT NULL,
    latitude  REAL NOT NULL CHECK (latitude BETWEEN -90 AND 90),
    longitude REAL NOT NULL CHECK (longitude BETWEEN -180 AND 180),
    comment   TEXT
) STRICT;
